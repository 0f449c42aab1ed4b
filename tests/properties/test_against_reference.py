"""The vector core equals the plain reference on any input, however it is cut, loaded, spread or counted."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.changes import SegmentChanged
from models.policy import Policy
from streams.processor import Clock
from streams.recorded import recorded_event
from streams.replay import Replay, Replayed
from tests.properties.histories import (
    KINDS,
    Chunk,
    assert_customers_equal,
    clocks,
    commits_of,
    cuts,
    event_of,
    expected,
    far_future,
    feed,
    policies,
    ref_events,
    reference_of,
    sequences,
)
from tests.reference import ReferenceShard, RefEvent
from tests.support.tables import rows_of
from tests.unit.build import Feeder, at, make_policy

DEFAULT = make_policy(skew="36500d")


def history(*events: RefEvent) -> list[Chunk]:
    """All events in one batch."""
    return [Chunk(list(events), None)]


chunked = sequences().flatmap(cuts)


@settings(max_examples=300)
@given(chunked, policies(), clocks, st.integers(0, 20))
@example(  # a purchase exactly at the deadline, and one a microsecond after the next
    history(
        RefEvent("purchase", "1", "a", at(0)),
        RefEvent("purchase", "2", "a", at(90)),
        RefEvent("purchase", "3", "a", at(180, 1)),
    ),
    DEFAULT,
    Clock.EVENT,
    0,
)
@example(  # erased and signed up again, and redelivered, in one batch
    history(
        RefEvent("purchase", "1", "a", at(0), 5),
        RefEvent("erasure", "2", "a", at(1)),
        RefEvent("signup", "3", "a", at(0)),
        RefEvent("purchase", "1", "a", at(0), 5),
        RefEvent("purchase", "1", "a", at(0), 5),
    ),
    DEFAULT,
    Clock.EVENT,
    3,
)
def test_changes_and_customers_equal_the_reference(
    chunks: list[Chunk], policy: Policy, clock: Clock, backfill_until: int
) -> None:
    """Every field of every change, their order, and all customers at the end are the reference's."""
    shard = reference_of(policy, clock)
    feeder = Feeder(policy, clock, backfill_until)
    got = [change for chunk in chunks for change in feed(feeder, chunk)]
    assert got == expected(shard, chunks, backfill_until)
    assert_customers_equal(feeder, shard)
    feeder.load()
    assert_customers_equal(feeder, shard)
    assert [feeder.advance(far_future())] == [expected(shard, [Chunk([], far_future())])]


@settings(max_examples=100)
@given(chunked, policies(), clocks)
def test_a_reload_between_batches_changes_nothing(chunks: list[Chunk], policy: Policy, clock: Clock) -> None:
    """A table that is dropped and loaded from the store after every commit gives what one that stays gives."""
    stays, reloaded = Feeder(policy, clock), Feeder(policy, clock)
    for chunk in commits_of(chunks):
        changes = feed(stays, chunk)
        assert feed(reloaded, chunk) == changes
        if chunk.events or changes:  # else nothing was committed, and the store's time is still the one before
            reloaded.load()
    assert reloaded.customers() == stays.customers()
    assert reloaded.sizes() == stays.sizes()
    assert reloaded.advance(far_future()) == stays.advance(far_future())


@settings(max_examples=80)
@given(st.data(), sequences(least=1), policies(), clocks)
def test_cuts_make_no_difference(data: st.DataObject, events: list[RefEvent], policy: Policy, clock: Clock) -> None:
    """However a sequence is cut into batches, its changes are the same bytes."""
    outcomes = []
    for chunks in (
        history(*events),
        data.draw(cuts(events, advances=False)),
        [Chunk([event], None) for event in events],
    ):
        feeder = Feeder(policy, clock)
        changes = [change for chunk in chunks for change in feed(feeder, chunk)]
        outcomes.append((orjson.dumps(changes), feeder.customers(), feeder.sizes()))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def replayed(events: Sequence[RefEvent], shards: int, batch_size: int) -> Replayed:
    run = Replay(DEFAULT, shards, batch_size)
    values = [orjson.dumps(event_of(event)) for event in events]
    for _ in run.feed(recorded_event(value, "events", line) for line, value in enumerate(values, start=1)):
        pass
    return run.finish(far_future())


def undecided(changes: Sequence[SegmentChanged]) -> list[dict[str, Any]]:
    return [{name: value for name, value in change.items() if name != "decided_at"} for change in changes]


@settings(max_examples=100)
@given(sequences(orders=["occurred"]), st.integers(2, 5), st.integers(1, 50))
def test_shards_make_no_difference_in_time_order(events: list[RefEvent], shards: int, batch_size: int) -> None:
    """Input in time order gives the same changes and customers on one shard and on several, but for decided_at."""
    one, many = replayed(events, 1, 5000), replayed(events, shards, batch_size)
    assert undecided(many.changes) == undecided(one.changes)
    assert list(many.customers()) == list(one.customers())
    assert many.segments == one.segments


@st.composite
def one_customers(draw: st.DrawFn) -> tuple[list[RefEvent], list[RefEvent]]:
    """Events with ids of their own, within the window of remembered ids, some repeated, in two orders."""
    kinds = [kind for kind in KINDS if kind not in ("erasure", "tick")]
    drawn = draw(st.lists(ref_events(kinds), max_size=16))
    events = [
        RefEvent(e.kind, f"id{i}", "a", e.occurred_at, e.amount_minor, e.attributes, e.record_time)
        for i, e in enumerate(drawn)
    ]
    repeated = draw(st.lists(st.sampled_from(events), max_size=5)) if events else []
    return draw(st.permutations(events + repeated)), draw(st.permutations(events + repeated))


@settings(max_examples=100)
@given(one_customers(), clocks, st.integers(1, 8))
def test_the_order_of_a_customers_events_does_not_matter(
    orders: tuple[list[RefEvent], list[RefEvent]], clock: Clock, size: int
) -> None:
    """Any permutation, with redeliveries, ends in the same measures, attributes and labels."""
    ends = []
    for events in orders:
        feeder = Feeder(make_policy(skew="36500d"), clock)
        for start in range(0, len(events), size):
            feed(feeder, Chunk(events[start : start + size], None))
        before = feeder.customers()
        feeder.advance(far_future())
        ends.append((before, feeder.customers()))
    assert ends[0] == ends[1]


LABELS = ("new", "potential", "regular", "lapsed")


def recounted(shard: ReferenceShard) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for customer in shard.customers.values():
        if customer.label is not None:
            count, revenue = sizes[f"lifecycle:{customer.label}"]
            sizes[f"lifecycle:{customer.label}"] = (count + 1, revenue + customer.gross - customer.refunded)
    return sizes


@settings(max_examples=100)
@given(chunked, clocks, st.booleans())
def test_segment_sizes_equal_a_recount(chunks: list[Chunk], clock: Clock, reload: bool) -> None:
    """After every batch the stored sizes are what counting all customers gives, and zero for the other segments."""
    shard, feeder = reference_of(DEFAULT, clock), Feeder(DEFAULT, clock)
    for chunk in commits_of(chunks):
        expected(shard, [chunk])
        changes = feed(feeder, chunk)
        sizes = recounted(shard)
        assert feeder.sizes() == {f"lifecycle:{name}": sizes[f"lifecycle:{name}"] for name in LABELS}
        if reload and (chunk.events or changes):
            feeder.load()


@settings(max_examples=100)
@given(sequences(kinds=("purchase", "refund", "refund")), st.data())
def test_totals_are_exact_sums(events: list[RefEvent], data: st.DataObject) -> None:
    """A customer's totals are the sums of the amounts of the events that count, to the cent."""
    feeder = Feeder(make_policy(remembered=255))
    once = {(event.customer_id, event.event_id): event for event in reversed(events)}
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for event in once.values():
        refunded = event.kind == "refund"
        totals[event.customer_id][2 * refunded] += 1
        totals[event.customer_id][2 * refunded + 1] += event.amount_minor
    for chunk in data.draw(cuts(events, advances=False)):
        feeder.feed(*(event_of(event) for event in chunk.events))
    table = feeder.processor.table
    assert {
        name: [int(getattr(table, column)[row]) for column in ("orders", "gross", "refunds", "refunded")]
        for name, row in rows_of(table).items()
    } == totals


@settings(max_examples=100)
@given(chunked, clocks)
def test_dimensions_do_not_disturb_each_other(chunks: list[Chunk], clock: Clock) -> None:
    """Under a policy with two dimensions, each moves as it would alone; the sequences number the moves of both."""
    both = {"slow": ("30d", 3, "90d"), "fast": ("10d", 2, "30d")}
    feeder = Feeder(make_policy(skew="36500d", dimensions=both), clock)
    changes = [change for chunk in chunks for change in feed(feeder, chunk)]
    for dimension, lifecycle in both.items():
        alone = Feeder(make_policy(skew="36500d", dimensions={dimension: lifecycle}), clock)
        own = [change for chunk in chunks for change in feed(alone, chunk)]
        assert [cut_down(change) for change in changes if change["dimension"] == dimension] == [
            cut_down(change) for change in own
        ]
    before: dict[str, SegmentChanged] = {}
    for change in changes:
        last = before.get(change["customer_id"])
        following = {1} if last is None else {last["sequence"] + 1}
        if last is not None and last["cause"] == "erasure":
            following.add(1)
        assert change["sequence"] in following
        before[change["customer_id"]] = change


def cut_down(change: SegmentChanged) -> dict[str, Any]:
    """The change without what depends on other dimensions."""
    return {name: value for name, value in change.items() if name not in ("sequence", "segments")}
