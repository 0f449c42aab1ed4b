"""The state of a learner: when an instant is complete, what is ignored, and JSON that is checked when it is read."""

import json
from itertools import permutations
from typing import Any

import pytest

from models.clustering import learn
from models.errors import StateError
from models.learner import MOST_PENDING, LearnerState
from models.sampling import Draw
from tests.support.populations import DAY, begins, draw, population, split

CUSTOMERS = population(1, 2000)


def a_draw(day: int, **more: Any) -> Draw:
    return draw(CUSTOMERS, day, 5, **{"sample": 100, "clusters": 2, **more})


def after(*draws: Draw) -> LearnerState:
    """The state after draws of which none completes an instant that is to be learned."""
    state = LearnerState.beginning(draws[0])
    for each in draws:
        state = state.hearing(each)
    return state


def test_an_instant_is_due_when_all_shards_were_heard() -> None:
    """Not before the last of them, whatever their order; then with all their rows, ascending by key."""
    whole = a_draw(1)
    found = set()
    for order in permutations(split(whole, 3)):
        state = after(*order[:2])
        assert state.due is None
        state = state.hearing(order[2])
        assert state.due is not None
        assert (state.due.as_of, state.due.heard) == (DAY, (0, 1, 2))
        assert (state.due.keys, state.due.rows) == (whole.keys, whole.rows)
        found.add(state.encode())
    assert len(found) == 1


def test_of_many_rows_those_with_the_smallest_keys_are_kept() -> None:
    """Not more than the sample waits, however many shards send that many."""
    one, other = a_draw(1), draw(CUSTOMERS, 1, 6, sample=100, clusters=2)
    sent = [each.model_copy(update={"shard": shard, "shards": 3}) for shard, each in enumerate((one, other))]
    both = sorted(zip(one.keys + other.keys, one.rows + other.rows, strict=True))[:100]
    (waiting,) = after(*sent).pending
    assert list(zip(waiting.keys, waiting.rows, strict=True)) == both


def test_the_same_shard_twice_counts_once() -> None:
    """What arrives at least once is learned once."""
    first, second, third = split(a_draw(1), 3)
    once = after(first, second)
    assert after(first, first, second, first) == once
    assert once.due is None
    assert once.hearing(third).due is not None


def test_an_instant_that_was_learned_is_not_learned_again() -> None:
    """Neither it nor an earlier one."""
    state = after(a_draw(2))
    assert state.due is not None
    state = state.past(state.due)
    assert (state.learned_as_of, state.pending, state.due) == (2 * DAY, (), None)
    assert state.drawn == a_draw(2).rows
    assert state.hearing(a_draw(2)) is state
    assert state.hearing(a_draw(1)) is state


def test_a_shard_that_begins_was_empty_before() -> None:
    """It is waited for at no instant up to that one, but at later ones."""
    shards = {day: split(a_draw(day), 2) for day in (1, 2, 3)}
    state = after(*(shards[day][0] for day in (1, 2, 3)))
    assert state.due is None
    state = state.hearing(begins(shards[1][1], 1, 2))
    due = []
    while (instant := state.due) is not None:
        due.append((instant.as_of // DAY, instant.rows))
        state = state.past(instant)
    assert due == [(1, shards[1][0].rows), (2, shards[2][0].rows)]
    state = state.hearing(shards[3][1])
    assert state.due is not None
    assert state.due.rows == a_draw(3).rows


def test_a_shard_that_begins_completes_its_instant() -> None:
    """When all begin, there is an instant as of which nothing is known."""
    one, other = (begins(each, each.shard, 4) for each in split(a_draw(1), 2))
    found = learn({}, [one, other])
    assert found.models == {("cluster", 4 * DAY): None}
    assert found.states["cluster"].learned_as_of == 4 * DAY


def test_a_complete_instant_gives_up_earlier_ones() -> None:
    """A shard that never answered for them does not hold up the others."""
    shards = {day: split(a_draw(day), 2) for day in (1, 2, 3)}
    state = after(shards[1][0], shards[3][0], shards[2][0], shards[2][1])
    assert state.due is not None
    state = state.past(state.due)
    assert [each.as_of for each in state.pending] == [3 * DAY]
    assert state.hearing(shards[1][1]) is state


def test_few_instants_wait() -> None:
    """The oldest is given up: a shard that is gone does not make the state grow."""
    silent = [split(a_draw(day), 2)[0] for day in range(1, MOST_PENDING + 4)]
    state = after(*silent)
    assert [each.as_of // DAY for each in state.pending] == list(range(4, MOST_PENDING + 4))
    assert after(*reversed(silent)).pending == state.pending


@pytest.mark.parametrize("change", [{"clusters": 3}, {"sample": 200}, {"settings_seed": 2}], ids=str)
def test_other_settings_are_another_learner(change: dict[str, int]) -> None:
    """It begins with the first draw that has them, unless that is an old one; versions of models never repeat.

    A policy may be the same one, as the default follows the program, or an earlier one, after a rollback.
    """
    old = learn({}, [a_draw(1, version=2), a_draw(2, version=2)]).states
    assert old["cluster"].version == 2
    for day, version in [(1, 3), (2, 1), (2, 2)]:
        same = learn(old, [a_draw(day, version=version, **change)])
        assert (same.states, same.models) == (old, {("cluster", day * DAY): None})
    for version in (1, 2, 3):
        new = learn(old, [a_draw(3, version=version, **change)])
        state = new.states["cluster"]
        assert (state.policy_version, state.settings) == (version, a_draw(3, **change).settings)
        assert (state.version, state.samples) == (3, len(a_draw(3, **change).rows))
        published = new.models["cluster", 3 * DAY]
        assert published is not None
        assert published.version == 3


def test_who_waits_for_an_instant_that_is_given_up_is_told_so() -> None:
    """Shards wait for the model as of an instant; there is none for one that nobody will ever learn."""
    parts = {day: split(a_draw(day), 2) for day in range(1, MOST_PENDING + 5)}
    found = learn({}, [parts[1][0], *parts[2]])
    assert (found.models["cluster", 1 * DAY], set(found.models)) == (None, {("cluster", DAY), ("cluster", 2 * DAY)})
    assert learn(found.states, [parts[1][1]]).models == {("cluster", DAY): None}
    late = learn(found.states, [parts[day][0] for day in range(3, MOST_PENDING + 4)])
    assert late.models == {("cluster", 3 * DAY): None}
    other = learn(late.states, [a_draw(MOST_PENDING + 4, version=2, clusters=3)])
    (learned,) = (as_of for (_, as_of), model in other.models.items() if model is not None)
    assert learned == (MOST_PENDING + 4) * DAY
    assert set(other.models) == {("cluster", day * DAY) for day in range(4, MOST_PENDING + 5)}


def test_a_shard_that_is_behind_does_not_bring_old_settings_back() -> None:
    """While a policy spreads, draws of both come in any order; the instant of the first new one decides."""
    early, late = split(a_draw(3), 2)
    waiting = after(*split(a_draw(1), 2), early)
    new = waiting.hearing(split(a_draw(3, version=2, clusters=3), 2)[1])
    assert new.settings.clusters == 3
    assert new.hearing(late) == new
    assert new.hearing(split(a_draw(2), 2)[0]) == new
    assert waiting.hearing(split(a_draw(2, version=2, clusters=3), 2)[1]) == waiting


def test_other_settings_do_not_publish_an_instant_again() -> None:
    """The model as of an instant is one for good."""
    old = learn({}, [a_draw(1), a_draw(2)]).states
    new = learn(old, [a_draw(2, version=2, clusters=3)])
    assert new.models == {("cluster", 2 * DAY): None}  # which is stored only if nothing is
    assert (new.states["cluster"].model, new.states["cluster"].learned_as_of) == (None, 2 * DAY)


def test_another_number_of_shards_is_another_learner() -> None:
    """What waits of the old ones can never be complete; who begins is counted anew."""
    old = after(*split(a_draw(1), 3)[:2], begins(split(a_draw(1), 3)[0], 0, 1))
    state = old.hearing(split(a_draw(2), 2)[1])
    assert (state.shards, state.first) == (2, {})
    assert [each.heard for each in state.pending] == [(1,)]


def test_a_newer_policy_with_the_same_settings_goes_on() -> None:
    """The clusters do not begin again because another dimension has changed."""
    old = learn({}, [a_draw(1), a_draw(2)]).states
    state = learn(old, [a_draw(3, version=7)]).states["cluster"]
    assert (state.policy_version, state.samples) == (7, 300)
    state = learn({"cluster": state}, [a_draw(4, version=6)]).states["cluster"]
    assert (state.policy_version, state.samples) == (7, 400)


def a_state() -> LearnerState:
    """With something in every field."""
    states = learn({}, [*split(a_draw(1), 2), *split(a_draw(2), 2)]).states
    return learn(states, [begins(split(a_draw(3), 2)[0], 0, 3), split(a_draw(4), 2)[1]]).states["cluster"]


def test_the_state_is_json_and_comes_back() -> None:
    """Equal states have equal texts, and a text is the state again, to the last bit."""
    state = a_state()
    assert all(value not in (None, (), {}) for value in state.model_dump(exclude={"drifts"}).values())
    text = state.encode()
    assert LearnerState.parse(text) == state
    assert LearnerState.parse(text).encode() == text
    assert json.loads(text)["first"] == {"0": 3 * DAY}


def damaged(change: Any) -> bytes:
    fields = json.loads(a_state().encode())
    change(fields)
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.update(format=2), "format 2; run a newer version"),
        (lambda f: f.update(more=1), "more"),
        (lambda f: f.pop("learned"), "if, and only if, something was learned"),
        (lambda f: f.update(samples=-1), "samples"),
        (lambda f: f.update(samples="7"), "samples"),
        (lambda f: f.update(shards=1), "there are 1 shards"),
        (lambda f: f["learned"].update(means=[0.0]), "learned: .*one number for each feature"),
        (lambda f: f["learned"]["idle"].pop(), "learned: .*idle must have one number"),
        (lambda f: f["learned"]["centres"].pop(), r"learned\.centres"),
        (lambda f: f["learned"].update(variances=[1.0, -1.0, 1.0]), r"learned\.variances\.1"),
        (lambda f: f["learned"]["alarm"].update(unit=0.0), r"learned\.alarm\.unit"),
        (lambda f: f["learned"].update(idle=[0] * 3, centres=[[0.0] * 3] * 3), "features and clusters of the settings"),
        (lambda f: f["model"].update(features=["a", "b", "c"]), "the model must have"),
        (lambda f: f["drawn"][0].pop(), "each row must have"),
        (lambda f: f["pending"][1]["keys"].pop(), r"pending\.1: .*a key for each row"),
        (lambda f: f["pending"].reverse(), "pending instants must ascend"),
        (lambda f: f.update(learned_as_of=9 * DAY), "pending instants must ascend"),
        (lambda f: f["pending"].extend(f["pending"] * 8), "pending"),
    ],
)
def test_damage_is_noticed(change: Any, said: str) -> None:
    """The error names the field and what it must be."""
    with pytest.raises(StateError, match=said):
        LearnerState.parse(damaged(change))


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[]", a_state().encode()[:-2]])
def test_what_is_no_state_is_refused(text: bytes) -> None:
    """As a StateError, never as another."""
    with pytest.raises(StateError, match="the stored learner of a cluster dimension is damaged"):
        LearnerState.parse(text)
