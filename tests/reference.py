"""The plain reference: what the segmenter must say, one customer and one event at a time.

It is written to be read, and it shares no code with the vectorised core, which must equal it on any input.
Instants are integers, microseconds UTC; amounts are integers, minor units of the base currency; None means
absent.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["purchase", "refund", "signup", "profile", "survey", "erasure", "tick"]
Cause = Literal["purchase", "refund", "signup", "profile", "survey", "late_event", "time", "erasure"]
Clock = Literal["event", "ingestion"]
Label = Literal["new", "potential", "regular", "lapsed"]

DAY = 24 * 60 * 60 * 1_000_000
LIFECYCLE = "lifecycle"  # the only dimension the reference knows


@dataclass(frozen=True, slots=True)
class RefEvent:
    """One record of an input topic. `attributes` is flat: country, channel and category beside all others."""

    kind: Kind
    event_id: str
    customer_id: str
    occurred_at: int
    amount_minor: int = 0
    attributes: dict[str, str] = field(default_factory=dict)
    record_time: int = 0  # the record's timestamp in the log


@dataclass(slots=True)
class RefCustomer:
    """The fold of one customer's events, and what was last said about them."""

    customer_id: str
    remembered: deque[str]  # the last event ids, oldest first
    orders: int = 0
    gross: int = 0
    refunds: int = 0
    refunded: int = 0
    first: int | None = None  # purchase
    last: int | None = None  # purchase
    signed_up_at: int | None = None
    attributes: dict[str, tuple[int, str]] = field(default_factory=dict)  # name -> (occurred_at, value)

    label: Label | None = None
    changed_at: int | None = None  # the first instant at which the present label holds
    sequence: int = 0  # changes so far
    due: int | None = None  # the next deadline


@dataclass(frozen=True, slots=True)
class RefChange:
    """One label move. Recency, frequency, monetary and segments are those after the change."""

    customer_id: str
    sequence: int
    dimension: str
    from_: Label | None
    to: Label | None
    cause: Cause
    event_id: str | None
    effective_at: int
    decided_at: int
    source: str
    recency_days: int | None
    frequency: int
    monetary: int
    segments: dict[str, Label | None]


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """The lifecycle: a label is a function of a customer and an instant, nothing else."""

    potential_after: int = 30 * DAY
    lapse_after: int = 90 * DAY
    regular_orders: int = 3
    remembered_events: int = 16
    kept: tuple[str, ...] = ()  # names of the attributes that are kept

    def label(self, customer: RefCustomer, instant: int) -> Label | None:
        if customer.last is not None:
            if instant > customer.last + self.lapse_after:
                return "lapsed"
            return "regular" if customer.orders >= self.regular_orders else "new"
        if customer.signed_up_at is not None:
            if instant > customer.signed_up_at + self.lapse_after:
                return "lapsed"
            return "potential" if instant > customer.signed_up_at + self.potential_after else "new"
        return None

    def deadline(self, customer: RefCustomer, instant: int) -> int | None:
        """The earliest D >= instant after which, not at which, the label is another one."""
        turns: list[int] = []
        if customer.last is not None:
            turns = [customer.last + self.lapse_after]
        elif customer.signed_up_at is not None:
            turns = [customer.signed_up_at + self.potential_after, customer.signed_up_at + self.lapse_after]
        return min(
            (d for d in turns if d >= instant and self.label(customer, d) != self.label(customer, d + 1)),
            default=None,
        )


class ReferenceShard:
    """All customers of one shard, and the shard's time, which never steps back."""

    def __init__(self, policy: ReferencePolicy, clock: Clock) -> None:
        self.policy = policy
        self.clock = clock
        self.time: int | None = None  # before the first record or tick
        self.customers: dict[str, RefCustomer] = {}
        self.changes: list[RefChange] = []
        # (deadline, customer_id), earliest first. An entry that is not its customer's `due` is outdated.
        self._deadlines: list[tuple[int, str]] = []

    def tick(self, instant: int) -> None:
        """Nothing was read, but time has passed."""
        self._advance(instant)

    def apply(self, event: RefEvent) -> None:
        """Fold one record: first what time alone has changed by then, then the event, then the label."""
        now = self._advance(event.occurred_at if self.clock == "event" else event.record_time)
        if event.kind == "tick":
            return
        if event.kind == "erasure":
            self._erase(event, now)
            return

        customer = self.customers.get(event.customer_id)
        if customer is None:
            customer = RefCustomer(event.customer_id, deque(maxlen=self.policy.remembered_events))
            self.customers[event.customer_id] = customer
        if event.event_id in customer.remembered:
            return
        customer.remembered.append(event.event_id)  # drops the oldest when full
        self._fold(customer, event)

        label = self.policy.label(customer, now)
        if label != customer.label:
            late = self._is_late(customer, event, now)
            effective_at = max(now, customer.changed_at or now) if late else event.occurred_at
            self._change(
                customer,
                to=label,
                cause="late_event" if late else event.kind,
                event_id=event.event_id,
                effective_at=effective_at,
                decided_at=now,
                source=f"event:{event.event_id}",
            )
        self._schedule(customer, now)

    def _advance(self, instant: int) -> int:
        """Move the shard's time and apply every deadline before it, by deadline, then customer_id."""
        now = instant if self.time is None else max(self.time, instant)
        self.time = now
        while self._deadlines and self._deadlines[0][0] < now:
            deadline, customer_id = heapq.heappop(self._deadlines)
            customer = self.customers.get(customer_id)
            if customer is None or customer.due != deadline:
                continue
            self._change(
                customer,
                to=self.policy.label(customer, deadline + 1),
                cause="time",
                event_id=None,
                effective_at=deadline,
                decided_at=now,
                source=f"deadline:{deadline}",
            )
            self._schedule(customer, deadline + 1)
        return now

    def _schedule(self, customer: RefCustomer, instant: int) -> None:
        due = self.policy.deadline(customer, instant)
        if due is not None and due != customer.due:
            heapq.heappush(self._deadlines, (due, customer.customer_id))
        customer.due = due

    def _fold(self, customer: RefCustomer, event: RefEvent) -> None:
        """Counts and sums, earliest and latest: nothing here depends on the order of the events."""
        at = event.occurred_at
        if event.kind == "purchase":
            customer.orders += 1
            customer.gross += event.amount_minor
            customer.first = at if customer.first is None else min(customer.first, at)
            customer.last = at if customer.last is None else max(customer.last, at)
        elif event.kind == "refund":
            customer.refunds += 1
            customer.refunded += event.amount_minor
        elif event.kind == "signup":
            customer.signed_up_at = at if customer.signed_up_at is None else min(customer.signed_up_at, at)
        for name in self.policy.kept:
            if name in event.attributes:
                # The latest value wins; at one instant, the greater string.
                candidate = (at, event.attributes[name])
                customer.attributes[name] = max(candidate, customer.attributes.get(name, candidate))

    def _is_late(self, customer: RefCustomer, event: RefEvent, now: int) -> bool:
        """Something was already said about a later instant, or time has overtaken what the event did."""
        if customer.changed_at is not None and event.occurred_at < customer.changed_at:
            return True
        return self.policy.label(customer, event.occurred_at) != self.policy.label(customer, now)

    def _change(
        self,
        customer: RefCustomer,
        *,
        to: Label | None,
        cause: Cause,
        event_id: str | None,
        effective_at: int,
        decided_at: int,
        source: str,
    ) -> None:
        erased = cause == "erasure"  # then nothing is known any more
        recency = None
        if customer.last is not None and not erased:
            recency = max(0, (effective_at - customer.last) // DAY)
        customer.sequence += 1
        self.changes.append(
            RefChange(
                customer_id=customer.customer_id,
                sequence=customer.sequence,
                dimension=LIFECYCLE,
                from_=customer.label,
                to=to,
                cause=cause,
                event_id=event_id,
                effective_at=effective_at,
                decided_at=decided_at,
                source=source,
                recency_days=recency,
                frequency=0 if erased else customer.orders,
                monetary=0 if erased else customer.gross - customer.refunded,
                segments={LIFECYCLE: to},
            )
        )
        customer.label = to
        # A deadline is the last instant of the old label.
        customer.changed_at = effective_at + 1 if cause == "time" else effective_at

    def _erase(self, event: RefEvent, now: int) -> None:
        """Say that the label is gone, then forget everything. Whatever follows starts a new customer."""
        customer = self.customers.get(event.customer_id)
        if customer is None:
            return
        if customer.label is not None:
            self._change(
                customer,
                to=None,
                cause="erasure",
                event_id=event.event_id,
                effective_at=max(event.occurred_at, customer.changed_at or event.occurred_at),
                decided_at=now,
                source=f"event:{event.event_id}",
            )
        del self.customers[event.customer_id]


def replay_reference(
    events: Iterable[RefEvent],
    policy: ReferencePolicy,
    clock: Clock,
    until: int | None,
    shards: int = 1,
    partition: Callable[[str], int] = lambda customer_id: 0,
) -> list[RefChange]:
    """All changes in the order of files: effective_at, the input's order, customer_id, sequence.

    In the input's order, what time alone has changed comes after all events. A tick among the events reaches
    every shard. At the end every shard gets one at `until`, or else at the last instant any shard has seen.
    """
    table = [ReferenceShard(policy, clock) for _ in range(shards)]
    ordered: list[tuple[tuple[int, float, str, int], RefChange]] = []

    def collect(shard: ReferenceShard, position: int) -> None:
        for change in shard.changes:
            place = float("inf") if change.cause == "time" else position
            ordered.append(((change.effective_at, place, change.customer_id, change.sequence), change))
        shard.changes.clear()

    position = 0
    for position, event in enumerate(events):
        for shard in table if event.kind == "tick" else [table[partition(event.customer_id)]]:
            shard.apply(event)
            collect(shard, position)

    end = until if until is not None else max((s.time for s in table if s.time is not None), default=None)
    if end is not None:
        for shard in table:
            shard.tick(end)
            collect(shard, position)
    return [change for _, change in sorted(ordered, key=lambda item: item[0])]
