"""What tests are built from: instants, events, records, policies, and a shard to feed them to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from models.batch import EventBatch, Refusal
from models.changes import SegmentChanged
from models.events import ROLE_OF_KIND, ROLES, Role
from models.instants import FOREVER
from models.policy import Policy, parse_policy
from streams.activations import Activations
from streams.commit import Range
from streams.customers import customers_of
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.store.memory import MemoryStore

DAY = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Day 0 of the tests' calendar.
START = (datetime(2024, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
#: A Kafka timestamp (milliseconds) later than any event of the tests.
LATER = 4_102_444_800_000

Event = dict[str, Any]


def texts_of(batch: EventBatch) -> dict[str, list[str | None]]:
    """Each row's texts, by attribute."""
    return {name: texts.column() for name, texts in batch.attributes.items()}


def at(day: float, micros: int = 0) -> int:
    """The instant so many days, and microseconds, after day 0."""
    return START + round(day * DAY) + micros


def text(instant: int) -> str:
    """The instant as RFC 3339, with microseconds only where there are some; written without the project's code."""
    moment = _EPOCH + timedelta(microseconds=instant)
    return moment.isoformat(timespec="microseconds" if instant % 1_000_000 else "seconds").replace("+00:00", "Z")


def purchase(customer: str, event_id: str, occurred_at: int, amount: Any = "1.00", **more: Any) -> Event:
    """A purchase in USD."""
    return {
        "kind": "purchase", "event_id": event_id, "customer_id": customer, "order_id": f"o-{event_id}",
        "occurred_at": text(occurred_at), "amount": amount, "currency": "USD", **more,
    }  # fmt: skip


def refund(customer: str, event_id: str, occurred_at: int, amount: Any = "1.00", **more: Any) -> Event:
    """A refund in USD."""
    return purchase(customer, event_id, occurred_at, amount, **{"kind": "refund", **more})


def signup(customer: str, event_id: str, occurred_at: int, **more: Any) -> Event:
    """A signup."""
    moment = text(occurred_at)
    return {"kind": "signup", "event_id": event_id, "customer_id": customer, "occurred_at": moment, **more}


def profile(customer: str, event_id: str, occurred_at: int, **more: Any) -> Event:
    """A profile: attributes have changed."""
    return signup(customer, event_id, occurred_at, **{"kind": "profile", **more})


def survey(customer: str, event_id: str, occurred_at: int, score: Any = 5, **more: Any) -> Event:
    """A survey's answer."""
    return signup(customer, event_id, occurred_at, **{"kind": "survey", "score": score, **more})


def erasure(customer: str, event_id: str, occurred_at: int) -> Event:
    """An erasure."""
    return signup(customer, event_id, occurred_at, kind="erasure")


def tick(occurred_at: int) -> Event:
    """A tick."""
    return {"kind": "tick", "occurred_at": text(occurred_at)}


class Rec(NamedTuple):
    """A Kafka record."""

    value: bytes | None
    key: bytes | None = None
    offset: int = 0
    timestamp: int = LATER
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp_type: int = 0


def record(event: Mapping[str, Any], offset: int = 0, timestamp: int = LATER) -> Rec:
    """The event as a record, keyed as producers must key it."""
    customer = event.get("customer_id")
    return Rec(json.dumps(event).encode(), customer.encode() if customer else None, offset, timestamp)


def make_policy(
    *,
    base: str = "USD",
    rates: Mapping[str, str] | None = None,
    skew: str = "5m",
    remembered: int = 16,
    keep: Sequence[str] = ("country", "channel"),
    numbers: Sequence[str] = (),
    max_values: int = 10_000,
    dimensions: Mapping[str, tuple[str, int, str]] | None = None,
    version: int = 1,
    more: str = "",
) -> Policy:
    """A policy; a dimension is (potential_after, regular_orders, lapse_after), ``more`` is TOML to follow them."""
    lines = [f"version = {version}", "[money]", f'base = "{base}"', "[money.rates]"]
    lines += [f'{code} = "{rate}"' for code, rate in (rates or {}).items()]
    lines += ["[events]", f'allowed_skew = "{skew}"', f"remembered_ids = {remembered}"]
    lines += ["[attributes]", f"keep = {json.dumps(list(keep))}", f"max_values = {max_values}"]
    lines += [f"numbers = {json.dumps(list(numbers))}"]
    for name, (potential, orders, lapse) in (dimensions or {"lifecycle": ("30d", 3, "90d")}).items():
        lines += [f"[dimensions.{name}]", 'engine = "lifecycle"', f'potential_after = "{potential}"']
        lines += [f"regular_orders = {orders}", f'lapse_after = "{lapse}"']
    return parse_policy("\n".join([*lines, more]))


class Feeder:
    """The only shard there is, on a store of its own, fed with events in the order given.

    Offsets count all events, whatever their topic, as in a replay.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        clock: Clock = Clock.EVENT,
        backfill_until: int = 0,
        store: MemoryStore | None = None,
    ) -> None:
        self.policy = policy or make_policy()
        self.clock = clock
        self.store = store or MemoryStore()
        self.backfill_until = backfill_until
        self.refusals: list[Refusal] = []
        self.load()
        self.offset = self.store.header(0).offsets["purchases"]

    def load(self, policy: Policy | None = None) -> None:
        """Forget the table and load it from the store, under another policy if one is given."""
        self.policy = policy or self.policy
        topics: dict[Role, str] = {role: role for role in ROLES}
        activations = Activations(self.store, self.policy)
        self.processor = BatchProcessor(Shard(0, 1, topics), activations, self.store, self.clock)
        self.processor.load(dict.fromkeys(ROLES, 0), dict.fromkeys(ROLES, self.backfill_until))

    def step(self, events: Sequence[Event], record_times: Sequence[int] | None = None) -> Step:
        """Fold the events in one batch and commit; ``record_times`` are instants of whole milliseconds."""
        batches: list[EventBatch] = []
        refusals: list[Refusal] = []
        stamps = [LATER] * len(events) if record_times is None else [instant // 1000 for instant in record_times]
        records: dict[Role, list[Rec]] = {role: [] for role in ROLES}
        for i, (event, stamp) in enumerate(zip(events, stamps, strict=True)):
            records[ROLE_OF_KIND[event["kind"]]].append(record(event, self.offset + i, stamp))
        for role in ROLES:
            batch, refused = self.processor.read(role, records[role], FOREVER)
            batches.append(batch)
            refusals += refused
        batch = EventBatch.concat(batches)
        covered = Range(self.offset, self.offset + len(events))
        self.offset = covered.end
        batch = batch.take(np.argsort(batch.offset, kind="stable"))
        step = self.processor.fold(batch, refusals, dict.fromkeys(ROLES, covered))
        self.processor.commit(step)
        self.refusals += [*refusals, *step.outcome.overflowed]
        return step

    def feed(self, *events: Event, record_times: Sequence[int] | None = None) -> list[SegmentChanged]:
        """The changes that one batch of the events causes."""
        return list(self.step(events, record_times).outcome.published)

    def feed_one_by_one(self, events: Iterable[Event]) -> list[SegmentChanged]:
        """The changes that the events cause, each in a batch of its own."""
        return [change for event in events for change in self.feed(event)]

    def advance(self, instant: int, most: int | None = None) -> list[SegmentChanged]:
        """The changes that time alone causes."""
        step = self.processor.advance(instant, most)
        if step is None:
            return []
        self.processor.commit(step)
        return list(step.outcome.published)

    def customers(self) -> dict[str, dict[str, Any]]:
        """All stored customers, as people read them."""
        return {customer["customer_id"]: customer for customer in customers_of(self.store, 0)}

    def customer(self, customer: str) -> dict[str, Any]:
        """One stored customer, as people read it."""
        return self.customers()[customer]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Customers and revenue of every segment, as stored."""
        return {name: (count.customers, count.revenue) for name, count in self.store.segments(0).items()}
