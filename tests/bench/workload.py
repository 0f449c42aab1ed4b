"""The events that are measured: so many known customers, picked alike or by Zipf's law, and always new ones among them.

Every known customer has bought three times, so that nothing moves them again. Of each ten measured events one is a new
customer's first purchase, one the second and one the third of customers who came shortly before, seven are of known
customers: two changes for ten events, in any part of a workload, however many customers there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from models.instants import SECOND, format_column
from models.partitioner import partitions_of
from streams.embedded.broker import PARTITIONS
from tests.bench.events import BenchRecord

PURCHASES: Final = "purchases"
#: Known customers have bought so often; a third purchase makes a regular of a new customer.
ORDERS: Final = 3
#: So many other new customers come between two purchases of one.
_BETWEEN: Final = 100
#: Zipf's law: the customer of rank r buys in proportion to r to this power.
_SKEW: Final = -1.0
_AT_ONCE: Final = 50_000
_AMOUNTS: Final = 997

Spread = Literal["uniform", "zipf"]
#: Customer, segment before, segment after, event.
Move = tuple[str, str | None, str | None, str]


class Produced(NamedTuple):
    """One record to produce."""

    key: bytes
    value: bytes
    partition: int


@dataclass(frozen=True)
class Workload:
    """So many known customers, and so many measured events; the same events each time but for their dates."""

    customers: int
    events: int
    spread: Spread = "uniform"

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"{self.customers:,} customers, {self.spread}"

    @property
    def known_events(self) -> int:
        """Events that make the known customers known."""
        return self.customers * ORDERS

    @property
    def total(self) -> int:
        """Events, with those that come before what is measured."""
        return self.known_events + self.events

    def known(self) -> Iterator[Produced]:
        """Every known customer's purchases, in turns."""
        for turn in range(ORDERS):
            yield from self._turn(turn)

    def first(self) -> Iterator[Produced]:
        """Every known customer's first purchase."""
        yield from self._turn(0)

    def _turn(self, turn: int) -> Iterator[Produced]:
        for start in range(0, self.customers, _AT_ONCE):
            customers = np.arange(start, min(start + _AT_ONCE, self.customers))
            yield from _produced(customers, customers + turn * self.customers, "k")

    def measured(self, start: int = 0, end: int | None = None) -> Iterator[Produced]:
        """What is measured, or a part of it."""
        customers = self._customers()[:end]
        for first in range(start, len(customers), _AT_ONCE):
            part = customers[first : first + _AT_ONCE]
            yield from _produced(part, np.arange(first, first + len(part)), "m")

    def _customers(self) -> NDArray[np.int64]:
        """Who buys in each measured event; new customers are numbered after the known ones."""
        rng = np.random.default_rng(1)
        if self.spread == "uniform":
            customers = rng.integers(0, self.customers, self.events)
        else:
            weights = np.arange(1, self.customers + 1, dtype=np.float64) ** _SKEW
            ranks = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(self.events))
            customers = rng.permutation(self.customers)[np.minimum(ranks, self.customers - 1)]
        events = np.arange(self.events)
        for place, purchase in ((0, 0), (3, 1), (6, 2)):
            number = events // 10 - purchase * _BETWEEN
            theirs = (events % 10 == place) & (number >= 0)
            customers[theirs] = self.customers + number[theirs]
        return customers

    def moves(self, end: int | None = None) -> list[Move]:
        """What the measured events must publish, in their order; or those before ``end``."""
        events = np.arange(self.events)[:end]
        number = events // 10
        first, third = events % 10 == 0, (events % 10 == 6) & (number >= 2 * _BETWEEN)
        found: list[Move] = []
        for event in np.flatnonzero(first | third).tolist():
            if event % 10 == 0:
                found.append((_customer(self.customers + event // 10), None, "new", _event("m", event)))
            else:
                customer = self.customers + event // 10 - 2 * _BETWEEN
                found.append((_customer(customer), "new", "regular", _event("m", event)))
        return found


def _customer(number: int) -> str:
    return f"c{number:08d}"


def _event(kind: str, number: int) -> str:
    return f"{kind}{number:09d}"


def _produced(customers: NDArray[np.int64], numbers: NDArray[np.int64], kind: str) -> Iterator[Produced]:
    """One purchase each, in the hour before now, a microsecond apart."""
    began = int((time.time() - 3600) * SECOND) // SECOND * SECOND
    return purchases(customers.tolist(), numbers.tolist(), format_column(began + numbers), kind)


def purchases(
    customers: Sequence[int], numbers: Sequence[int], occurred_at: Sequence[str], kind: str
) -> Iterator[Produced]:
    """One purchase for each customer, with a number that is its own among those of a kind."""
    ids = [_customer(customer) for customer in customers]
    keys = [each.encode() for each in ids]
    partitions = partitions_of(keys, PARTITIONS).tolist()
    for customer, key, partition, number, at in zip(ids, keys, partitions, numbers, occurred_at, strict=True):
        amount = f"{5 + number % _AMOUNTS}.{number % 100:02d}"
        value = (
            f'{{"event_id":"{_event(kind, number)}","kind":"purchase","customer_id":"{customer}",'
            f'"order_id":"{kind}o{number:09d}","occurred_at":"{at}","amount":"{amount}","currency":"USD",'
            f'"country":"DE","channel":"online","category":"home"}}'
        )
        yield Produced(key, value.encode(), partition)


def records_of(produced: Iterable[Produced]) -> list[BenchRecord]:
    """What was produced as records of one partition, just now."""
    now = int(time.time() * 1000)
    return [BenchRecord(offset, now, each.key, each.value) for offset, each in enumerate(produced)]


def produce(broker: str, topic: str, records: Iterable[Produced]) -> int:
    """Put the records onto the topic, in order, and return how many once the broker has them all."""
    failed: list[str] = []

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(error.str())

    producer = Producer({"bootstrap.servers": broker, "enable.idempotence": True, "log_level": 0})
    count = 0
    for record in records:
        while True:
            try:
                producer.produce(topic, record.value, record.key, record.partition, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
        if count % 1000 == 0:
            producer.poll(0)
    if producer.flush(60) or failed:
        raise RuntimeError(f"the broker did not take every event: {failed[:1] or 'no answer'}")
    return count
