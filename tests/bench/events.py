"""The events that are measured: purchases and refunds of generated customers, and producing them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson
from confluent_kafka import Producer

from models.partitioner import partitions_of
from models.policy import default_policy
from streams.embedded.broker import PARTITIONS
from streams.generator import Population, generate

#: What a partition may hold; the embedded broker drops the oldest beyond 5 MiB and says nothing.
PARTITION_LIMIT: Final = 4 * 1024 * 1024
#: More than a record costs on the broker beside its key and value.
RECORD_OVERHEAD: Final = 20
#: Records in one record batch, at most; a megabyte ends it before.
RECORD_BATCH: Final = 1_000_000
#: Everything lies in this many days before the run: nobody lapses, under either clock.
_DAYS: Final = 78
_EVENTS_PER_CUSTOMER: Final = 8.0


class Produced(NamedTuple):
    """One record to produce."""

    key: bytes
    value: bytes
    partition: int


class BenchRecord(NamedTuple):
    """A record as the consumer gives it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_type: int = 1


@dataclass(frozen=True, slots=True)
class Events:
    """What both contenders read. ``moves`` are the (customer, from, to, event) that must come out."""

    warm_up: list[Produced]
    measured: list[Produced]
    customers: int
    moves: set[tuple[str, str | None, str | None, str]]
    live: bool

    @property
    def total(self) -> int:
        """How many there are, with those that warm up."""
        return len(self.warm_up) + len(self.measured)

    def records(self) -> list[BenchRecord]:
        """All of them as records of one partition that were produced just now."""
        return _as_records([*self.warm_up, *self.measured])

    def history(self) -> list[BenchRecord]:
        """Those that cut-offs are taken from: all, or those before what is live."""
        return _as_records(self.warm_up) if self.live else self.records()

    @property
    def largest_partition(self) -> int:
        """Bytes of the partition that holds most."""
        sizes: Counter[int] = Counter()
        for each in (*self.warm_up, *self.measured):
            sizes[each.partition] += len(each.key) + len(each.value) + RECORD_OVERHEAD
        return max(sizes.values())


def _as_records(every: Sequence[Produced]) -> list[BenchRecord]:
    now = int(time.time() * 1000)
    return [BenchRecord(i, now + i // 100, each.key, each.value) for i, each in enumerate(every)]


def make_events(count: int, warm_up: int, *, live: bool = False) -> Events:
    """``count`` events in time order, the first ``warm_up`` of which are not measured; the same but for the date.

    If they are ``live``, what is measured happens now, and not in the weeks before.
    """
    start = (datetime.now(UTC) - timedelta(days=_DAYS + 1)).replace(hour=0, minute=0, second=0, microsecond=0)
    population = Population(
        customers=max(50, int(count / _EVENTS_PER_CUSTOMER)), days=_DAYS, acquisition_days=30, start=start,
        signup_share=0.0, survey_share=0.0, r=0.8, alpha=0.6, a=0.8, b=20.0,
    )  # fmt: skip
    events = list(generate(population))[:count]
    if len(events) < count:
        raise ValueError(f"the population gives only {len(events)} events")
    if live:
        for number, event in enumerate(events[warm_up:]):
            event["occurred_at"] = (datetime.now(UTC) + timedelta(microseconds=number)).isoformat()
    keys = [event["customer_id"].encode() for event in events]
    chosen = partitions_of(keys, PARTITIONS).tolist()
    records = [
        Produced(key, orjson.dumps(event), partition)
        for key, event, partition in zip(keys, events, chosen, strict=True)
    ]
    made = Events(records[:warm_up], records[warm_up:], len(set(keys)), _moves(events), live)
    if made.largest_partition > PARTITION_LIMIT:
        raise ValueError(f"{count} events are too many: {made.largest_partition} bytes in one partition")
    return made


def _moves(events: Sequence[dict[str, Any]]) -> set[tuple[str, str | None, str | None, str]]:
    """Who moves where: new with the first purchase, regular with the policy's ``regular_orders``-th."""
    enough = default_policy().dimensions["lifecycle"].regular_orders
    orders: Counter[str] = Counter()
    moves: set[tuple[str, str | None, str | None, str]] = set()
    for event in events:
        if event["kind"] == "purchase":
            customer = event["customer_id"]
            orders[customer] += 1
            if orders[customer] == 1:
                moves.add((customer, None, "new", event["event_id"]))
            elif orders[customer] == enough:
                moves.add((customer, "new", "regular", event["event_id"]))
    return moves


def produce(broker: str, topic: str, records: Sequence[Produced], record_batch: int = RECORD_BATCH) -> None:
    """Put the records onto the topic, in order, and return once the broker has them all."""
    failed: list[str] = []

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(error.str())

    # Uncompressed, so that the bytes counted are the bytes kept. In record batches of up to a megabyte, because the
    # embedded broker hands out one of them a fetch, where Kafka hands out as many as make a megabyte.
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "max.in.flight": 1,
            "batch.size": 1_000_000,
            "batch.num.messages": record_batch,
            "linger.ms": 500,
            "log_level": 0,
        }
    )
    for record in records:
        producer.produce(topic, value=record.value, key=record.key, partition=record.partition, on_delivery=delivered)
        producer.poll(0)
    if producer.flush(30) or failed:
        raise RuntimeError(f"the broker did not take every event: {failed[:1] or 'no answer'}")
