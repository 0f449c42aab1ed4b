"""A shard that is rebuilt: state as before, nothing told twice, nothing new kept back; and how far a rebuild is."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from models.changes import SegmentChanged
from models.events import ROLES, Role
from models.instants import FOREVER
from streams.commit import Range
from streams.reading import Fetch, Seam
from streams.rebuild import Done, Estimate, done, rewind, sentence
from streams.store.memory import MemoryStore
from tests.unit.build import Event, Feeder, Rec, at, erasure, make_policy, purchase, record, refund, signup
from tests.unit.test_processor_population import abc, drive

Change = SegmentChanged


def story(seed: int) -> list[Event]:
    """Events of a few customers in time order, with refusals, refunds and erasures among them."""
    rng = random.Random(seed)
    events: list[Event] = []
    for i in range(120):
        customer, when = f"c{rng.randrange(9)}", at(rng.randrange(400), i)
        kind = rng.random()
        if kind < 0.1:
            events.append(signup(customer, f"e{i}", when))
        elif kind < 0.15:
            events.append(erasure(customer, f"e{i}", when))
        elif kind < 0.25:
            events.append(refund(customer, f"e{i}", when))
        else:
            events.append(purchase(customer, f"e{i}", when, "5.00" if kind < 0.9 else "-5.00"))
    return sorted(events, key=lambda event: str(event["occurred_at"]))


def fed(feeder: Feeder, events: Sequence[Event], size: int) -> list[Change]:
    """The changes that the events cause, in batches of a size."""
    return [change for i in range(0, len(events), size) for change in feeder.feed(*events[i : i + size])]


@pytest.mark.parametrize("seed", range(4))
def test_a_rebuilt_shard_is_as_before(seed: int) -> None:
    """Whatever the batches were and are, also one that straddles where the shard was."""
    rng, events = random.Random(seed), story(seed)
    cut = rng.randrange(20, 100)
    feeder = Feeder()
    told = fed(feeder, events[:cut], rng.randrange(1, 30))
    before, offsets, sizes = feeder.customers(), feeder.store.header(0).offsets, feeder.sizes()
    commits, letters = feeder.store.header(0).commits, len(feeder.refusals)
    assert rewind(feeder.store, 1, "r1") == []
    rewound = feeder.store.header(0)
    assert (rewound.owner, rewound.time, rewound.commits) == (None, None, commits)
    assert feeder.customers() == {}

    silent = Feeder(store=feeder.store)
    silent.offset = 0
    assert fed(silent, events[:cut], rng.randrange(1, 30)) == []
    assert not silent.processor.silent
    assert (silent.customers(), silent.store.header(0).offsets, silent.sizes()) == (before, offsets, sizes)

    assert feeder.store.rewind(0, "r2", 1)
    straddling = Feeder(store=feeder.store)
    straddling.offset = 0
    assert straddling.processor.silent
    assert straddling.processor.activation == 1
    new = fed(straddling, events, rng.randrange(1, 60))
    undisturbed = Feeder()
    every = fed(undisturbed, events, 1)
    assert sorted(map(str, [*told, *new])) == sorted(map(str, every))
    assert straddling.customers() == undisturbed.customers()
    stored = [letter for entry in feeder.store.header(0).entries for letter in entry.dead_letters]
    assert len({letter["offset"] for letter in stored}) == len(stored) >= letters


@pytest.mark.parametrize("seed", range(2))
def test_cutoffs_are_taken_as_before(seed: int) -> None:
    """Under a policy with cut-offs, which exist already: nobody waits, and nothing is told again."""
    rng, events = random.Random(seed), story(seed)
    cut = rng.randrange(30, 100)

    def run(feeder: Feeder, part: Sequence[Event]) -> list[Change]:
        found: list[Change] = []
        for event in part:
            (instant,) = feeder.processor.read("purchases", [record(event)], FOREVER)[0].occurred_at.tolist() or [0]
            found += drive(feeder, max(instant, feeder.processor.time))
            found += feeder.feed(event)
        return found

    policy, good = abc(), [event for event in events if event.get("amount") != "-5.00"]
    feeder = Feeder(policy)
    told = run(feeder, good[:cut])
    before, activations = feeder.customers(), feeder.store.latest_activation()
    assert feeder.store.rewind(0, "r1", 1)
    again = Feeder(policy, store=feeder.store)
    again.offset = 0
    assert run(again, good[:cut]) == []
    assert again.customers() == before
    assert again.store.latest_activation() == activations
    whole = Feeder(policy)
    assert [*told, *run(again, good[cut:])] == run(whole, good)


def test_a_deadline_after_the_rebuild_is_told() -> None:
    """One before it is not told again."""
    feeder = Feeder()
    feeder.feed(purchase("ann", "1", at(0)), purchase("bob", "2", at(50)))
    assert [change["customer_id"] for change in feeder.advance(at(100))] == ["ann"]
    assert feeder.store.rewind(0, "r", 1)
    again = Feeder(store=feeder.store)
    again.offset = 0
    assert again.feed(purchase("ann", "1", at(0)), purchase("bob", "2", at(50))) == []
    assert again.processor.silent  # time has not come yet to where it was
    assert [change["customer_id"] for change in again.advance(at(200))] == ["bob"]
    assert not again.processor.silent


def test_what_is_due_in_parts_is_not_told_again() -> None:
    """Though the shard's time is where it was as soon as the first part is applied."""
    events = [purchase(f"c{i}", f"{i}", at(0)) for i in range(5)]
    feeder = Feeder()
    feeder.feed(*events)
    assert len(feeder.advance(at(100))) == 5
    assert feeder.store.rewind(0, "r", 1)
    again = Feeder(store=feeder.store)
    again.offset = 0
    assert again.feed(*events) == []
    assert [again.advance(at(100), most=2) for _ in range(4)] == [[]] * 4
    assert again.customers() == feeder.customers()


def test_a_policy_is_taken_only_where_the_shard_was() -> None:
    """What it moves is told of where customers are now, not of where they were in the past."""
    feeder = Feeder(make_policy())
    feeder.feed(purchase("ann", "1", at(0)), purchase("ann", "2", at(10)))
    assert feeder.store.rewind(0, "r", 1)
    eager = make_policy(version=2, dimensions={"lifecycle": ("30d", 2, "90d")})
    again = Feeder(store=feeder.store)
    again.offset = 0
    again.processor.activations.apply(eager, at(11), backfill=False)
    assert again.processor.follow() is None
    assert again.feed(purchase("ann", "1", at(0))) == []
    again.processor.activations.refresh()
    assert again.processor.follow() is None
    again.feed(purchase("ann", "2", at(10)))
    step = again.processor.follow()
    assert step is not None
    assert step.reload
    again.processor.commit(step)
    again.load()
    assert [(c["from"], c["to"], c["cause"]) for c in again.advance(again.processor.time)] == [
        ("new", "regular", "policy")
    ]


def test_what_is_due_must_be_told_first() -> None:
    """A shard that applies its deadlines in parts, or has not taken a policy, is not rewound; nor is one twice."""
    feeder = Feeder()
    feeder.feed(*(purchase(f"c{i}", f"{i}", at(0)) for i in range(5)))
    step = feeder.processor.advance(at(100), most=2)
    assert step is not None
    feeder.processor.commit(step)
    assert rewind(feeder.store, 1, "r") == [0]
    while (step := feeder.processor.advance(at(100), most=2)) is not None:
        feeder.processor.commit(step)
    assert not feeder.store.rewind(0, "r", 2)
    assert rewind(feeder.store, 1, "r") == []
    again = Feeder(store=feeder.store)
    assert feeder.store.rewind(0, "r", 1)
    assert feeder.store.owner(0) == again.processor.token, "it was rewound twice"


# Where newer records wait


def recs(*offsets: int) -> list[Rec]:
    return [record(purchase("ann", str(offset), at(0)), offset) for offset in offsets]


def test_newer_records_wait_for_all_older_ones() -> None:
    """A fetch is cut where the shard was; the rest comes once every topic is there."""
    seam = Seam(dict.fromkeys(ROLES, 0), {"purchases": 3, "signups": 2, "erasures": 0})
    both = recs(2, 3)
    assert seam.below(Fetch("purchases", Range(0, 5), recs(0, *[r.offset for r in both]))) is not None
    assert seam.waits("purchases")
    assert seam.waits("erasures")
    assert not seam.waits("signups")
    assert seam.held("purchases") == 1
    assert seam.below(Fetch("erasures", Range(0, 1), recs(0))) is None
    assert seam.folded({"purchases": Range(0, 3)}) == []
    assert seam.open
    released = seam.folded({"signups": Range(0, 2)})
    places = [(fetch.role, fetch.covered) for fetch in released]
    assert places == [("purchases", Range(3, 5)), ("erasures", Range(0, 1))]
    assert not seam.open
    fetch = Fetch("purchases", Range(5, 6), recs(5))
    assert seam.below(fetch) is fetch


def test_without_a_rebuild_nothing_waits() -> None:
    """Nor once the shard is past where it was."""
    for until in ({}, {"purchases": 3}):
        offsets: dict[Role, int] = dict.fromkeys(ROLES, 7)
        seam = Seam(offsets, until)  # type: ignore[arg-type]
        fetch = Fetch("purchases", Range(7, 8), recs(7))
        assert seam.below(fetch) is fetch
        assert not seam.open
        assert not seam.waits("purchases")


# How far it is


def test_progress() -> None:
    """Records of those to read, and shards that still wait."""
    store = MemoryStore()
    feeder = Feeder(store=store)
    fed(feeder, story(1)[:60], 7)
    store.begin_rebuild("r")
    assert store.begin_rebuild("other") == store.rebuilding() == "r"
    assert not done(store, 2, "r").complete
    rewind(store, 2, "r")
    assert done(store, 2, "r") == Done(0, 180, 0)
    again = Feeder(store=store)
    again.offset = 0
    again.feed(*story(1)[:20])
    assert done(store, 2, "r") == Done(60, 180, 0)
    fed(again, story(1)[20:90], 7)
    assert done(store, 2, "r").complete
    store.end_rebuild("other")
    assert store.rebuilding() == "r"
    store.end_rebuild("r")
    assert store.rebuilding() is None


@pytest.mark.parametrize(
    ("seen", "rest", "left"),
    [([], 5, None), ([(0.0, 0)], 5, None), ([(0.0, 0), (2.0, 10)], 50, 10.0), ([(0.0, 10), (1.0, 10)], 5, None),
     ([(0.0, 100), (1.0, 0), (2.0, 10)], 30, 3.0)],
    ids=["nothing", "once", "steady", "standing", "begun-again"],
)  # fmt: skip
def test_the_estimate(seen: Any, rest: int, left: float | None) -> None:
    """From what was done lately."""
    estimate = Estimate()
    for now, count in seen:
        estimate.saw(now, count)
    assert estimate.left(rest) == left


def test_the_sentence() -> None:
    """For people."""
    estimate = Estimate()
    estimate.saw(0.0, 0)
    estimate.saw(2.0, 100_000)
    assert sentence(Done(100_000, 400_000, 0), estimate) == (
        "25 %: 100,000 of 400,000 records read again, 50,000 a second, about 6 s left"
    )
    assert sentence(Done(0, 0, 0), Estimate()) == "100 %: 0 of 0 records read again"
