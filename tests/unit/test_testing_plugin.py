"""The pytest plugin: a fixture that tells what recorded events cause."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import pytest

from streams.replay import replay as replay_function
from streams.testing import replay_fixture
from tests.unit.build import at, make_policy, purchase, signup, text

Replay = Callable[..., list[dict[str, Any]]]

EVENTS = [purchase("a", "1", at(0)), signup("b", "2", at(1)), purchase("a", "3", at(2))]


def test_the_fixture_gives_the_changes(replay: Replay) -> None:
    """As they would be published, in order, under the default policy."""
    changes = replay(EVENTS)
    moves = [(change["customer_id"], change["to"]) for change in changes if change["dimension"] == "lifecycle"]
    assert moves == [("a", "new"), ("b", "new")]
    assert changes == replay_function(EVENTS)


def test_an_end_and_a_policy_may_be_given(replay: Replay) -> None:
    """In one line a test tells what a definition does."""
    policy = make_policy(dimensions={"vip": ("1d", 2, "7d")})
    changes = replay(EVENTS, policy, until=text(at(30)))
    assert [(change["customer_id"], change["to"]) for change in changes] == [
        ("a", "new"), ("b", "new"), ("a", "regular"), ("b", "potential"), ("b", "lapsed"), ("a", "lapsed"),
    ]  # fmt: skip
    assert replay(iter(EVENTS), policy=policy, until=text(at(30)), shards=3, batch_size=1) is not None


def test_every_replay_begins_with_nothing(replay: Replay) -> None:
    """Nothing is left from the call before."""
    assert replay(EVENTS) == replay(EVENTS)
    assert replay([]) == []


def test_an_event_that_cannot_be_used_fails_the_test(replay: Replay) -> None:
    """It is told which and why."""
    with pytest.raises(ValueError, match=r"event 2 cannot be used: .*\(unknown_currency\)"):
        replay([EVENTS[0], purchase("a", "9", at(1), currency="XXX")])


def test_the_plugin_is_found_by_pytest(pytestconfig: pytest.Config) -> None:
    """Whoever has installed the package has the fixture, without naming it anywhere."""
    (entry,) = (each for each in entry_points(group="pytest11") if each.name == "segmenter")
    assert entry.value == "streams.testing"
    assert pytestconfig.pluginmanager.has_plugin("segmenter")


def test_the_fixture_explains_itself() -> None:
    """``pytest --fixtures`` shows how it is called."""
    assert (replay_fixture.__doc__ or "").startswith("``replay(events, policy=None, *, until=None)``")
