"""How soon: from an event to its change, from a deadline to its lapse, and both while very many lapse at once.

One worker with the lifecycle alone on real servers, everything else at its default. Times are of this machine's clock,
which all processes share: an event's when it is handed to the producer, a change's when the consumer has it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import orjson
from confluent_kafka import Consumer, Producer, TopicPartition

from models.instants import SECOND, format_column
from tests.bench.contenders import SegmenterWorker
from tests.bench.policies import policy_text
from tests.bench.servers import CHANGES, Servers
from tests.bench.throughput import running
from tests.bench.workload import PURCHASES, Produced, Workload, produce, purchases

#: Seconds. Known customers bought within the last hour, so they do not lapse meanwhile.
LAPSE_AFTER: Final = 7200
_AT_END: Final = 5.0
#: Seconds in which the broker, a JVM, meets single events for the first time: they are not measured.
_RAMP: Final = 8.0
_AT_ONCE: Final = 50_000
#: Customers who lapse are numbered from here: nobody else is.
_LAPSING: Final = 50_000_000


@dataclass
class Seen:
    """When each change was consumed (Unix seconds), by its event or, of a lapse, by its customer."""

    events: dict[str, float] = field(default_factory=dict)
    lapses: dict[str, float] = field(default_factory=dict)


@contextmanager
def consuming(servers: Servers) -> Iterator[Seen]:
    """Consume all changes from now on, in a thread."""
    consumer = Consumer(
        {"bootstrap.servers": servers.broker, "group.id": "bench", "enable.auto.commit": False, "log_level": 0,
         "fetch.wait.max.ms": 100, "fetch.queue.backoff.ms": 1}
    )  # fmt: skip
    consumer.assign([TopicPartition(CHANGES, partition, end) for partition, end in enumerate(servers.ends())])
    seen, over = Seen(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            message = consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            now, change = time.time(), orjson.loads(message.value() or b"")
            if change["event_id"] is None:
                seen.lapses.setdefault(change["customer_id"], now)
            else:
                seen.events.setdefault(change["event_id"], now)

    thread = threading.Thread(target=watch, name="consumer")
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        consumer.close()


def produce_at(
    broker: str, records: Sequence[Produced], rate: float, until: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """Produce so many records a second, one by one. Returns when each was handed over, by event."""
    producer = Producer({"bootstrap.servers": broker, "linger.ms": 0, "log_level": 0})
    sent: dict[str, float] = {}
    began = time.perf_counter()
    for number, record in enumerate(records):
        pause = began + number / rate - time.perf_counter()
        if pause > 0:
            producer.poll(pause)
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        if until():
            break
        sent[orjson.loads(record.value)["event_id"]] = time.time()
        producer.produce(PURCHASES, record.value, record.key, record.partition)
    producer.flush(10)
    return sent


def _milliseconds(sent: dict[str, float], seen: dict[str, float]) -> np.ndarray:
    return np.array([1000 * (seen[each] - at) for each, at in sent.items() if each in seen])


@dataclass(frozen=True)
class Latency:
    """Milliseconds: half of all were as soon or sooner, and 99 of a hundred."""

    p50: float
    p99: float
    count: int

    @classmethod
    def of(cls, values: np.ndarray) -> Latency:
        """Of a column of milliseconds."""
        return cls(float(np.percentile(values, 50)), float(np.percentile(values, 99)), len(values))


class _Worker(SegmenterWorker):
    """With a lapse that can be waited for."""

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self._folder = TemporaryDirectory(prefix="segmenter-bench-")
        policy = Path(self._folder.name) / "policy.toml"
        text = policy_text("lifecycle").replace('"30d"', f'"{LAPSE_AFTER // 2}s"')
        policy.write_text(text.replace('"90d"', f'"{LAPSE_AFTER}s"'))
        self.given["policy"] = str(policy)


def live(servers: Servers, rate: float = 1000.0, seconds: float = 20.0) -> Latency:
    """From an event to its change, at so many events a second of which a fifth move somebody."""
    workload = Workload(20_000, int(rate * (_RAMP + seconds)))
    produce(servers.broker, PURCHASES, workload.known())
    worker = _Worker(servers)
    with running(worker) as process:
        process.wait_for(lambda: worker.finished(workload.known_events, 2 * workload.customers), "the warm-up")
        with consuming(servers) as seen:
            sent = produce_at(servers.broker, list(workload.measured()), rate)
            moves = {event for *_, event in workload.moves()}
            sent = {event: at for event, at in sent.items() if event in moves}
            process.wait_for(lambda: len(seen.events) >= len(sent), "the last change")
        measured_from = min(sent.values()) + _RAMP
        steady = {event: at for event, at in sent.items() if at >= measured_from}
        return Latency.of(_milliseconds(steady, seen.events))


def due(servers: Servers, customers: int = 4_000, seconds: float = 20.0) -> Latency:
    """From a deadline to its lapse: customers lapse one after the other while nothing is produced."""
    first = time.time() + 25
    lapses = first + np.arange(customers) * seconds / customers
    produce(servers.broker, PURCHASES, _bought(lapses))
    worker = _Worker(servers)
    with running(worker) as process, consuming(servers) as seen:
        process.wait_for(lambda: len(seen.lapses) >= customers, "the last lapse")
    at = {f"c{_LAPSING + number:08d}": lapse for number, lapse in enumerate(lapses.tolist())}
    return Latency.of(_milliseconds(at, seen.lapses))


@dataclass(frozen=True)
class Burst:
    """What very many lapses at once did to live events; ``seconds`` until the last of them was consumed."""

    lapses: int
    seconds: float
    meanwhile: Latency
    calm: Latency


def burst(servers: Servers, customers: int = 1_000_000, rate: float = 200.0, ready_within: float = 150.0) -> Burst:
    """So many lapses due within one second, while live events come."""
    due_at = float(int(time.time() + ready_within))
    produce(servers.broker, PURCHASES, _bought(due_at + np.arange(customers) / customers))
    worker = _Worker(servers)
    workload = Workload(1, int(rate * 600))
    moves = {event for *_, event in workload.moves()}
    with running(worker) as process:
        process.wait_for(lambda: worker.finished(customers, customers), "the warm-up")
        if time.time() > due_at - 10:
            raise RuntimeError(f"{customers} customers were not there {ready_within:g} s after they began to come")
        with consuming(servers) as seen:
            time.sleep(max(0.0, due_at - 10 - time.time()))
            sent = produce_at(
                servers.broker, list(workload.measured()), rate, until=lambda: len(seen.lapses) >= customers
            )
            over = max(seen.lapses.values())
            sent = {event: at for event, at in sent.items() if event in moves}
            time.sleep(_AT_END)
    calm = {event: at for event, at in sent.items() if at < due_at - 1}
    during = {event: at for event, at in sent.items() if due_at <= at <= over}
    return Burst(
        customers, over - due_at, Latency.of(_milliseconds(during, seen.events)),
        Latency.of(_milliseconds(calm, seen.events)),
    )  # fmt: skip


def _bought(lapses: np.ndarray) -> Iterator[Produced]:
    """A purchase of one customer each, who lapses then (Unix seconds)."""
    for start in range(0, len(lapses), _AT_ONCE):
        occurred = format_column(((lapses[start : start + _AT_ONCE] - LAPSE_AFTER) * SECOND).astype(np.int64))
        numbers = range(_LAPSING + start, _LAPSING + start + len(occurred))
        yield from purchases(numbers, numbers, occurred, "b")
