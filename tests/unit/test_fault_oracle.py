"""The oracle of fault runs sees each kind of damage: without this, a run that goes well would say nothing.

And a machine that lacks something still does the runs that need it not.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from streams.errors import ServiceUnavailable
from streams.generator import Population, generate
from streams.recorded import recorded_event
from streams.replay import Replay
from tests.faults import oracle
from tests.faults.__main__ import Results
from tests.faults.load import PARTITIONS, Expected, policy_of, replayed
from tests.faults.oracle import Verdict, judge
from tests.faults.run import Fault, perform
from tests.faults.servers import SERVERS, Lane, Servers, Shared
from tests.support.recordings import LIFECYCLE
from tests.support.stored import Stored
from tests.support.topics import Stored as Record
from tests.support.topics import Topics

EVENTS = [
    *generate(Population(customers=40, days=300, seed=2)),
    {"kind": "tick", "occurred_at": "2025-06-01T00:00:00Z"},
]


class World:
    """What consumers saw and what is stored after a run, to be damaged."""

    def __init__(self) -> None:
        run = Replay(policy_of(LIFECYCLE), PARTITIONS)
        lines = (recorded_event(json.dumps(event).encode(), "events", n) for n, event in enumerate(EVENTS))
        for _ in run.feed(lines):
            pass
        result = run.finish()
        ((self.store, _), *_) = result._stores
        self.published: list[dict[str, Any]] = [dict(change) for change in result.changes]
        told = Counter(change["customer_id"] for change in self.published)
        self.snapshots = [
            (each["customer_id"], {"sequence": told[each["customer_id"]], "segments": each["segments"]})
            for each in result.customers()
            if told[each["customer_id"]]
        ]
        self.letters: list[dict[str, Any]] = []
        self.waiting = 0

    def changes(self) -> list[dict[str, Any]]:
        return self.published

    def dead_letters(self) -> list[dict[str, Any]]:
        return self.letters

    def read(self, topic: str) -> list[Record]:
        rows = [(customer.encode(), json.dumps(value).encode()) for customer, value in self.snapshots]
        return [Record(0, offset, key, value, [], 0) for offset, (key, value) in enumerate(rows)]

    def behind(self, topics: Topics) -> int:
        return self.waiting

    def unpublished(self) -> int:
        return self.waiting


@pytest.fixture(scope="module")
def expected() -> Expected:
    """What a replay makes of the events."""
    return replayed(EVENTS)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A run in which nothing went wrong."""
    world = World()
    monkeypatch.setattr(oracle, "open_store", lambda settings: world.store)
    return world


def verdict(expected: Expected, world: World) -> Verdict:
    """What the oracle says of it."""
    return judge(expected, {}, cast(Topics, world), cast(Stored, world), PARTITIONS)


def test_nothing_wrong_is_good(expected: Expected, world: World) -> None:
    """Repeats of what was said are no fault."""
    world.published.append(world.published[0])
    found = verdict(expected, world)
    assert found.good, found.faults
    assert (found.lost, found.doubled, found.repeats) == (0, 0, 1)


def _lose(world: World) -> None:
    del world.published[-1]


def _double(world: World) -> None:
    world.published.append({**world.published[-1], "change_id": "another"})


def _contradict(world: World) -> None:
    world.published.append({**world.published[0], "sequence": 9})


def _disorder(world: World) -> None:
    world.published.reverse()


def _mislabel(world: World) -> None:
    customer, value = world.snapshots[0]
    world.snapshots[0] = (customer, {**value, "segments": {"lifecycle": "unheard of"}})


def _leave(world: World) -> None:
    world.waiting = 1


def _refuse(world: World) -> None:
    world.letters.append({"topic": "purchases", "partition": 0, "offset": 1, "code": "invalid_json"})


def _another_move(world: World) -> None:
    world.published[-1] = {**world.published[-1], "to": "elsewhere"}


@pytest.mark.parametrize(
    ("damage", "lost", "doubled", "word"),
    [
        (_lose, 1, 0, "lost"),
        (_double, 0, 1, "doubled"),
        (_another_move, 1, 1, "doubled or wrong"),
        (_contradict, 0, 0, "another content"),
        (_disorder, 0, 0, "not its customer's next"),
        (_mislabel, 0, 0, "another snapshot"),
        (_leave, 0, 0, "outbox"),
        (_refuse, 0, 0, "dead letters"),
    ],
)
def test_damage_is_seen(
    damage: Callable[[World], None], lost: int, doubled: int, word: str, expected: Expected, world: World
) -> None:
    """Each kind is counted or told."""
    damage(world)
    found = verdict(expected, world)
    assert (found.lost, found.doubled) == (lost, doubled)
    assert any(word in fault for fault in found.faults), found.faults


def test_customers_and_sizes_are_compared(expected: Expected, world: World) -> None:
    """One event that is missing from the state changes a customer and a segment's revenue."""
    another = replayed(EVENTS[:-20])
    mixed = Expected(expected.moves, expected.changes, another.customers, another.sizes)
    faults = verdict(mixed, world).faults
    assert any("another customer" in fault for fault in faults)
    assert any("another segment" in fault for fault in faults)


def test_a_snapshot_that_was_overtaken_is_seen(expected: Expected, world: World) -> None:
    """The last one is what compaction keeps: an older one must not come after it."""
    customer, _ = next(each for each in world.snapshots if each[1]["sequence"] > 1)
    world.snapshots.append((customer, {"sequence": 1, "segments": {"lifecycle": "new"}}))
    assert any("another snapshot" in fault for fault in verdict(expected, world).faults)


@pytest.mark.parametrize("plain", [False, True])
def test_a_fault_for_which_something_is_missing_is_skipped(
    plain: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the reason, and the others are done; only without Kafka and Redis there is nothing to do."""

    def absent(lane: Lane) -> Iterator[Servers]:
        raise ServiceUnavailable("there is no libfaketime")
        yield

    monkeypatch.setitem(SERVERS, "absent", contextmanager(absent))
    if plain:
        monkeypatch.setattr("tests.faults.run.PLAIN", ("absent",))
    fault = Fault("a fault", "clock", lambda run: None, servers="absent")
    with Shared() as shared:
        if plain:
            with pytest.raises(ServiceUnavailable):
                perform(fault, 1, Lane(shared), tmp_path)
        else:
            result = perform(fault, 1, Lane(shared), tmp_path)
            assert (result.skipped, result.good) == ("there is no libfaketime", True)
            results = Results(tmp_path / "results.jsonl")
            results.add(result.line())
            assert (results.skipped, results.failed, results.done()) == (1, 0, set())
    assert list(tmp_path.iterdir()) == []
