"""`policy apply` on a running fleet makes the moves that `policy diff` predicted, and cut-offs are those of a replay.

Two workers on the embedded broker and a real Redis; one of them is killed while it labels its customers anew.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from models.policy import default_policy_text, parse_policy
from streams.embedded.stack import EmbeddedStack
from streams.generator import Population, generate
from streams.recorded import recorded_event
from streams.replay import Replay
from streams.settings import Settings
from tests.support.commands import Worker, eventually, output_of
from tests.support.stored import Stored, stored
from tests.support.together import Told, telling
from tests.support.topics import Topics, distinct, out_of_order, undecided

DAY = "2024-09-0{}T00:00:00Z"
#: The default policy, otherwise: fewer orders make a regular, other bands, a region less, a dimension more.
OTHER = (
    default_policy_text()
    .replace("version = 1", "version = 2", 1)
    .replace("regular_orders = 3", "regular_orders = 2")
    .replace("medium = 30, large = 100", "medium = 20, large = 60")
    .replace("A = 80, B = 15, C = 5", "A = 50, B = 30, C = 20")
    .replace('of = "country"\nother = "elsewhere"', 'of = "country"\nother = "abroad"')
    + '\n[dimensions.tenure]\nengine = "bands"\nof = "tenure_days"\nbands = { young = 0, old = 60 }\n'
)


def _events(customers: int = 1200) -> list[dict[str, Any]]:
    """Eight months of customers, and a tick."""
    events = list(generate(Population(customers=customers, days=240, seed=11)))
    return [*events, {"kind": "tick", "occurred_at": DAY.format(1)}]


@contextmanager
def _fleet(folder: Path) -> Iterator[tuple[dict[str, str], Topics, Stored, Worker, Worker]]:
    """Two workers that own their shards, with small commits, so that much is under way for a while."""
    with EmbeddedStack(Settings()) as stack, Topics(stack.broker.address) as topics, stored(stack.redis.url) as state:
        settings = {
            **stack.environment(),
            "SEGMENTER_CLOCK": "event",
            "SEGMENTER_SESSION_TIMEOUT": "3",
            "SEGMENTER_BATCH_SIZE": "50",
        }
        with Worker(folder, settings, "victim") as victim, Worker(folder, settings, "survivor") as survivor:
            victim.ready()
            survivor.ready()
            yield settings, topics, state, victim, survivor


def _predicted(change: dict[str, Any]) -> tuple[Any, ...]:
    return (
        *(change[name] for name in ("customer_id", "dimension", "from", "to", "cause", "backfill", "policy_version")),
        *(change[name] for name in ("title", "channel", "viable", "sequence")),
    )


def apply_makes_what_diff_predicted(folder: Path) -> None:
    """The published `policy` changes are exactly those of the diff, all of them history; a rollback moves them back."""
    policy, out = folder / "other.toml", folder / "predicted.ndjson"
    policy.write_text(OTHER)
    events = _events()
    with _fleet(folder) as (settings, topics, state, victim, survivor):
        topics.put(events)
        eventually(lambda: state.settled(topics), 90, "the events are folded")
        said = output_of("policy", "diff", str(policy), "--live", "--changes", str(out), settings=settings)
        assert "customers would move" in said
        predicted = [json.loads(line) for line in out.read_text().splitlines()]
        assert len({change["customer_id"] for change in predicted}) > 500
        before = topics.size("segment-changes")
        output_of("policy", "apply", str(policy), "--wait", "0", settings=settings)
        eventually(lambda: topics.size("segment-changes") > before, 20, "the first moves")
        victim.kill()
        victim.start()
        # Life goes on while customers are labelled anew.
        late = [
            {**event, "event_id": f"late-{event['event_id']}", "occurred_at": DAY.format(2)}
            for event in events
            if event["kind"] == "purchase"
        ][:300]
        topics.put([*late, {"kind": "tick", "occurred_at": DAY.format(3)}])
        victim.ready()
        eventually(lambda: _taken(settings) and state.settled(topics), 60, "every shard has taken the policy")
        told = distinct(topics.changes())
        moved = [change for change in told if change["cause"] == "policy"]
        # The numbers of later changes only come after the moves; nobody was touched before.
        assert Counter(map(_predicted, moved)) == Counter(map(_predicted, predicted))
        assert {change["backfill"] for change in moved} == {True}
        assert next(out_of_order(told), None) is None
        assert "Traceback" not in survivor.log
        assert survivor.log.count("metrics at http://") == 1, "the survivor was restarted"
        _rolls_back(settings, topics, state, moved)


def _rolls_back(settings: dict[str, str], topics: Topics, state: Stored, moved: list[Any]) -> None:
    """Everybody who was moved and has not bought since is where they were."""
    output_of("policy", "rollback", "--wait", "30", settings=settings)
    eventually(lambda: _taken(settings) and state.settled(topics), 60, "every shard has gone back")
    told = distinct(topics.changes())
    back = [change for change in told if change["cause"] == "policy" and change["policy_version"] == 1]
    assert back
    assert {change["backfill"] for change in back} == {True}
    returned = {(change["customer_id"], change["dimension"]): change for change in back}
    bought = {change["customer_id"] for change in told if (change["event_id"] or "").startswith("late-")}
    for change in moved:
        if change["dimension"] in ("spend", "region") and change["customer_id"] not in bought:
            again = returned[change["customer_id"], change["dimension"]]
            assert (again["from"], again["to"]) == (change["to"], change["from"])


def _taken(settings: dict[str, str]) -> bool:
    return "4 of 4 shards with customers have taken it" in output_of("policy", "show", settings=settings)


def cutoffs_are_those_of_a_replay(folder: Path) -> None:
    """Under the event clock two workers take the cut-offs that a replay takes, and every shard moves with them."""
    events = _events(600)
    with _fleet(folder) as (_, topics, state, _, _):
        topics.put(events)
        eventually(lambda: state.settled(topics), 90, "the events are folded")
        replay = Replay(parse_policy(default_policy_text()), 4)
        lines = (recorded_event(json.dumps(event).encode(), "events", n) for n, event in enumerate(events, 1))
        for _ in replay.feed(lines):
            pass
        wanted = replay.finish().changes
        told = distinct(topics.changes())
        for name in ("rfm", "value"):
            assert len([change for change in told if change["dimension"] == name]) > 500
        assert undecided(told) == undecided(wanted)
        assert len({change["population_as_of"] for change in told if change["cause"] == "population"}) > 20
        stored_cutoffs = json.loads(state.client.hget("segmenter:policy", f"activation:{_latest(state)}") or b"{}")
        assert stored_cutoffs["cutoffs"] == replay.activations[-1].cutoffs.plain()
        taken = {state.client.hget(f"{{segmenter:{shard}}}:shard", "activation") for shard in range(4)}
        assert taken <= {str(_latest(state)).encode(), str(_latest(state) - 1).encode()}


def _latest(state: Stored) -> int:
    return int(state.client.hget("segmenter:policy", "latest") or b"0")


STORIES = (apply_makes_what_diff_predicted, cutoffs_are_those_of_a_replay)

told = telling(STORIES, at_once=2)


@pytest.mark.slow
@pytest.mark.parametrize("story", [story.__name__ for story in STORIES])
def test_a_fleet(story: str, told: Told) -> None:
    """The story comes out as it says it does."""
    told[story].result()
