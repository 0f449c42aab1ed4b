"""What is produced while faults happen, and what must come of it whatever happens."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, Message, Producer

from models.partitioner import partition_of
from models.policy import Policy, parse_policy
from streams.generator import Population, generate
from streams.recorded import read_recorded, recorded_event
from streams.replay import Replay
from tests.support.recordings import CDNOW_UNTIL, LIFECYCLE, cdnow
from tests.support.topics import TOPIC_OF_KIND, Move, moves, undecided

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PARTITIONS = 4


class Sent(NamedTuple):
    """A record to produce; ``topic`` is its usual name, without a run's prefix."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes


@dataclass(frozen=True)
class Expected:
    """What the oracle wants to find; see oracle.py.

    ``changes`` are a replay's, by id and without what depends on when they were decided; ``customers`` as ``export``
    writes them; ``sizes`` are customers and revenue (cents) of each ``dimension:label`` that has any;
    ``dead_letters`` counts codes.
    """

    moves: Counter[Move]
    changes: Mapping[str, Mapping[str, Any]]
    customers: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, tuple[int, int]]
    dead_letters: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Load:
    """Records in the order in which they are produced, the policy under which, and what must come of them."""

    name: str
    records: list[Sent]
    expected: Expected
    policy: Path = LIFECYCLE


def sent(events: Iterable[Mapping[str, Any]], partitions: int = PARTITIONS) -> list[Sent]:
    """Events as records, each on its kind's topic, keyed; a tick goes to every partition."""
    records: list[Sent] = []
    for event in events:
        topic, value = TOPIC_OF_KIND[event["kind"]], json.dumps(event).encode()
        if event["kind"] == "tick":
            records.extend(Sent(topic, partition, None, value) for partition in range(partitions))
        else:
            key = event["customer_id"].encode()
            records.append(Sent(topic, partition_of(key, partitions), key, value))
    return records


def policy_of(file: Path) -> Policy:
    """The policy in a file."""
    return parse_policy(file.read_text(encoding="utf-8"))


def replayed(
    events: Iterable[Mapping[str, Any]], policy: Path = LIFECYCLE, wanted: Counter[Move] | None = None
) -> Expected:
    """What a replay in process makes of events; ``wanted`` are the moves if a batch computation has found them."""
    run = Replay(policy_of(policy), PARTITIONS)
    for _ in run.feed(recorded_event(json.dumps(event).encode(), "load", n) for n, event in enumerate(events, start=1)):
        pass
    result = run.finish()
    changes = [dict(change) for change in result.changes]
    return Expected(
        moves=moves(changes) if wanted is None else wanted,
        changes=undecided(changes),
        customers={each["customer_id"]: each for each in result.customers()},
        sizes={name: (count.customers, count.revenue) for name, count in result.segments.items() if count.customers},
        dead_letters=Counter(letter["code"] for letter in result.dead_letters),
    )


def _recorded(name: str) -> Load:
    recording = cdnow(DATA, name)
    events = [json.loads(event.value) for event in read_recorded([str(recording.file)])]
    events.append({"kind": "tick", "occurred_at": CDNOW_UNTIL})
    return Load(name, sent(events), replayed(events, wanted=recording.moves))


@cache
def sample() -> Load:
    """The sample of CDNOW, 6,919 purchases, with the oracle that pandas computed; generated where it is absent."""
    return _recorded("cdnow_sample_purchases") if DATA.is_dir() else generated(1000)


@cache
def whole() -> Load:
    """All of CDNOW, 69,659 purchases; generated where it is absent."""
    return _recorded("cdnow_purchases") if DATA.is_dir() else generated(10_000)


@cache
def generated(customers: int, seed: int = 7) -> Load:
    """Signups, purchases, refunds, surveys and profiles of generated customers: two topics to be merged."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    events = list(generate(Population(customers=customers, days=400, seed=seed, start=start)))
    events.append({"kind": "tick", "occurred_at": "2025-06-01T00:00:00Z"})
    return Load(f"generated, {customers} customers", sent(events), replayed(events))


def usual(rng: random.Random) -> Load:
    """What is produced in a run unless its fault says otherwise."""
    return sample()


class Production:
    """Produces records at a rate in a thread of its own; ``hold`` and ``release`` pause it.

    ``sent`` counts what has been handed to the producer by topic and partition. As nobody else produces, that is the
    end of the log once the broker has it.
    """

    def __init__(self, servers: str, prefix: str, records: list[Sent], rate: float) -> None:
        self.records = records
        self.sent: Counter[tuple[str, int]] = Counter()
        self._prefix = prefix
        self._rate = rate
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 0,
                "topic.metadata.refresh.interval.ms": 1000,
            }
        )
        self._done = 0
        self._failed: list[str] = []
        self._going = threading.Event()
        self._going.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="production", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def progress(self) -> float:
        """Share of the records that has been produced."""
        return self._done / len(self.records)

    @property
    def over(self) -> bool:
        """Whether everything has been produced and taken by the broker, or nothing more will be."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def hold(self) -> None:
        """Produce nothing until ``release``."""
        self._going.clear()

    def release(self) -> None:
        """Go on."""
        self._going.set()

    def stop(self) -> None:
        """Produce no more."""
        self._stop.set()
        self._going.set()
        if self._thread.ident is not None:
            self._thread.join(20)
        self._producer.purge()

    def finish(self, within: float) -> None:
        """Wait until the broker has everything."""
        self._going.set()
        self._thread.join(within)
        assert not self._thread.is_alive(), f"not everything was produced within {within:g} s more"
        assert not self._failed, f"Kafka did not take a record: {self._failed[0]}"

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(error.str())

    def _produce(self) -> None:
        due = time.monotonic()
        while self._done < len(self.records):
            if not self._going.is_set():
                self._producer.flush(5)
                self._going.wait()
                due = time.monotonic()
            if self._stop.is_set():
                return
            # Only now: what is yet to be produced may have been replaced meanwhile.
            topic, partition, key, value = self.records[self._done]
            self._send(self._prefix + topic, partition, key, value)
            self.sent[topic, partition] += 1
            self._done += 1
            due += 1 / self._rate
            ahead = due - time.monotonic()
            if ahead > 0.01:
                self._producer.poll(0)
                time.sleep(ahead)
        while self._producer.flush(1) and not self._stop.is_set():
            pass

    def _send(self, topic: str, partition: int, key: bytes | None, value: bytes) -> None:
        while not self._stop.is_set():
            try:
                self._producer.produce(topic, value=value, key=key, partition=partition, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return
