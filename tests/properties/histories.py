"""Random histories of a shard, and what the plain reference says of them, in the core's own forms."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from hypothesis import strategies as st

from models.changes import SegmentChanged, change_id
from models.policy import Policy
from streams.processor import Clock
from tests.reference import Kind, RefChange, RefCustomer, ReferencePolicy, ReferenceShard, RefEvent
from tests.support.tables import ids_of, rows_of
from tests.unit.build import DAY, Event, Feeder, at, erasure, make_policy, purchase, refund, signup, text, tick

CUSTOMERS = ("a", "b", "ü")
KINDS: tuple[Kind, ...] = ("purchase",) * 6 + ("refund", "refund", "signup", "signup", "erasure", "tick")

#: Days that lie exactly a deadline, or a little more or less, apart; and microseconds around them.
days = st.sampled_from([*range(0, 200, 10), 29, 31, 89, 91, 270, 271, 400])
instants = st.builds(at, days, st.sampled_from([0, 0, 0, 0, 1, -1]))
record_times = st.builds(lambda day, millis: at(day) + 1000 * millis, days, st.sampled_from([0, 0, 0, 1, -1]))
event_ids = st.sampled_from([f"e{i}" for i in range(9)])
countries = st.sampled_from(["DE", "FR", "AT"])
attributes = st.fixed_dictionaries({}, optional={"country": countries, "channel": st.sampled_from(["web", "shop"])})


@st.composite
def ref_events(draw: st.DrawFn, kinds: Sequence[Kind] = KINDS, ids: st.SearchStrategy[str] = event_ids) -> RefEvent:
    """Any one event."""
    kind = draw(st.sampled_from(kinds))
    moneyed, plain = kind in ("purchase", "refund"), kind in ("erasure", "tick")
    return RefEvent(
        kind=kind,
        event_id="" if kind == "tick" else draw(ids),
        customer_id="" if kind == "tick" else draw(st.sampled_from(CUSTOMERS)),
        occurred_at=draw(instants),
        amount_minor=draw(st.integers(0, 500)) if moneyed else 0,
        attributes={} if plain else draw(attributes),
        record_time=draw(record_times),
    )


Order = Literal["none", "occurred", "recorded"]


@st.composite
def sequences(
    draw: st.DrawFn,
    kinds: Sequence[Kind] = KINDS,
    orders: Sequence[Order] = ("none", "occurred", "recorded"),
    least: int = 0,
    most: int = 40,
) -> list[RefEvent]:
    """Events in the order drawn, or sorted by either instant, in which case a few may be moved out of order."""
    events = draw(st.lists(ref_events(kinds), min_size=least, max_size=most))
    order = draw(st.sampled_from(orders))
    if order == "occurred":
        events.sort(key=lambda event: event.occurred_at)
    elif order == "recorded":
        events.sort(key=lambda event: event.record_time)
    return events


@dataclass(frozen=True)
class Chunk:
    """A batch of events; afterwards time may be moved to an instant without any."""

    events: list[RefEvent]
    advance_to: int | None


@st.composite
def cuts(draw: st.DrawFn, events: Sequence[RefEvent], advances: bool = True) -> list[Chunk]:
    """The events in batches."""
    chunks, rest = [], list(events)
    while rest:
        size = draw(st.integers(1, len(rest)))
        instant = draw(st.none() | instants) if advances else None
        chunks.append(Chunk(rest[:size], instant))
        rest = rest[size:]
    return chunks


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Policies that differ in what matters to one shard; every instant of the histories is allowed."""
    return make_policy(
        skew="36500d",
        remembered=draw(st.sampled_from([16, 16, 2, 1])),
        keep=draw(st.sampled_from([(), ("country",), ("country", "channel")])),
        dimensions={"lifecycle": (draw(st.sampled_from(["30d", "10d"])), draw(st.sampled_from([3, 2])), "90d")},
    )


clocks = st.sampled_from(list(Clock))


def money(minor: int) -> str:
    """Cents as text."""
    return f"{Decimal(minor).scaleb(-2):.2f}"


def event_of(ref: RefEvent) -> Event:
    """The event as it is on its topic; attributes that have a field of their own go there, or not."""
    if ref.kind == "tick":
        return tick(ref.occurred_at)
    if ref.kind == "erasure":
        return erasure(ref.customer_id, ref.event_id, ref.occurred_at)
    if ref.kind == "signup":
        return signup(ref.customer_id, ref.event_id, ref.occurred_at, attributes=ref.attributes)
    build = purchase if ref.kind == "purchase" else refund
    return build(ref.customer_id, ref.event_id, ref.occurred_at, money(ref.amount_minor), **ref.attributes)


def reference_of(policy: Policy, clock: Clock, dimension: str = "lifecycle") -> ReferenceShard:
    """The reference under the same policy."""
    lifecycle = policy.dimensions[dimension]
    plain = ReferencePolicy(
        lifecycle.potential_after,
        lifecycle.lapse_after,
        lifecycle.regular_orders,
        policy.events.remembered_ids,
        policy.attributes.keep,
    )
    return ReferenceShard(plain, clock.value)


def published(change: RefChange, backfill: bool = False) -> SegmentChanged:
    """The reference's change as it must be published."""
    source = change.source
    return {
        "change_id": change_id(change.customer_id, change.dimension, change.from_, change.to, source),
        "customer_id": change.customer_id,
        "sequence": change.sequence,
        "dimension": change.dimension,
        "from": change.from_,
        "to": change.to,
        "title": None,
        "channel": None,
        "viable": True,
        "model_version": None,
        "cause": change.cause,
        "event_id": change.event_id,
        "effective_at": text(change.effective_at),
        "decided_at": text(change.decided_at),
        "policy_version": 1,
        "population_as_of": None,
        "backfill": backfill,
        "rfm": {
            "recency_days": change.recency_days,
            "frequency": change.frequency,
            "monetary": money(change.monetary),
            "currency": "USD",
        },
        "segments": dict(change.segments),
    }


def expected(shard: ReferenceShard, chunks: Sequence[Chunk], backfill_until: int = 0) -> list[SegmentChanged]:
    """All that the reference publishes; events count from 0, those below ``backfill_until`` are history."""
    changes: list[SegmentChanged] = []
    offset = 0
    for chunk in chunks:
        for event in chunk.events:
            shard.apply(event)
            changes += [published(change, offset < backfill_until) for change in shard.changes]
            shard.changes.clear()
            offset += 1
        if chunk.advance_to is not None:
            shard.tick(chunk.advance_to)
            changes += [published(change) for change in shard.changes]
            shard.changes.clear()
    return changes


def feed(feeder: Feeder, chunk: Chunk) -> list[SegmentChanged]:
    """All that the core publishes for one chunk."""
    changes: list[SegmentChanged] = []
    if chunk.events:
        events = [event_of(ref) for ref in chunk.events]
        changes += feeder.feed(*events, record_times=[ref.record_time for ref in chunk.events])
    if chunk.advance_to is not None:
        changes += feeder.advance(chunk.advance_to)
    return changes


def commits_of(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The same with events and passing time apart, so that each is a commit of its own."""
    parts = [part for chunk in chunks for part in (Chunk(chunk.events, None), Chunk([], chunk.advance_to))]
    return [part for part in parts if part.events or part.advance_to is not None]


def described(customer: RefCustomer) -> dict[str, Any]:
    """The reference's customer as people read the stored one."""

    def instant(value: int | None) -> str | None:
        return None if value is None else text(value)

    return {
        "customer_id": customer.customer_id,
        "signed_up_at": instant(customer.signed_up_at),
        "first_purchase_at": instant(customer.first),
        "last_purchase_at": instant(customer.last),
        "orders": customer.orders,
        "refunds": customer.refunds,
        "gross": money(customer.gross),
        "refunded": money(customer.refunded),
        "net": money(customer.gross - customer.refunded),
        "currency": "USD",
        "surveys": 0,
        "satisfaction": None,
        "attributes": {name: value for name, (_, value) in customer.attributes.items()},
        "segments": {"lifecycle": customer.label},
    }


def assert_customers_equal(feeder: Feeder, shard: ReferenceShard) -> None:
    """What is stored, and what the table holds beside it, is what the reference has; nothing more, nothing less."""
    assert feeder.customers() == {name: described(customer) for name, customer in shard.customers.items()}
    table = feeder.processor.table
    assert rows_of(table).keys() == shard.customers.keys()
    for name, customer in shard.customers.items():
        row = table.index[name]
        assert int(table.sequence[row]) == customer.sequence
        assert len(ids_of(table, row)) == len(customer.remembered)
        if customer.changed_at is not None:
            assert int(table.changed_at[0][row]) == customer.changed_at


def far_future() -> int:
    """An instant after every deadline of the histories."""
    return at(1000) + DAY
