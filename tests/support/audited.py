"""A fleet without servers, to be verified: topics are lists, the store is in memory, and it can crash anywhere."""

import json
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from models.events import ROLE_OF_KIND, ROLES, Role
from models.instants import parse
from models.partitioner import partition_of
from models.policy import Policy
from streams.activations import Activations
from streams.inbox import Batch
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.shard_log import Folder, LogRecord
from streams.store.memory import MemoryStore
from streams.trainer import Trainer
from streams.verify import Audit, OutputNames
from streams.verify_report import ShardReport

TOPICS: dict[Role, str] = {role: role for role in ROLES}
CHANGES, SNAPSHOTS, LETTERS = "segment-changes", "customer-segments", "dead-letters"
_MS = 1000
#: Later than any event: a millisecond timestamp.
_LATER = 4_102_444_800_000


class ListReader:
    """See Reader in streams/shard_log.py; ``most`` records at a time."""

    def __init__(self, records: Sequence[LogRecord], start: int, most: int) -> None:
        self._records, self.position, self._most = records, start, most

    def take(self, end: int) -> Sequence[LogRecord]:
        first = bisect_left(self._records, self.position, key=lambda record: record.offset)
        found = [each for each in self._records[first : first + self._most] if each.offset < end]
        self.position = found[-1].offset + 1 if found else max(end, self.position)
        return found

    def close(self) -> None:
        pass


class ListLog:
    """See Log in streams/shard_log.py: topics that are lists of records by partition."""

    def __init__(self, partitions: Mapping[str, int], most: int = 100) -> None:
        self._partitions = dict(partitions)
        self.records: dict[tuple[str, int], list[LogRecord]] = defaultdict(list)
        self.first: dict[tuple[str, int], int] = defaultdict(int)
        self._most = most

    def partitions(self, topic: str) -> int:
        return self._partitions[topic]

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        kept = self.records[topic, partition]
        return self.first[topic, partition], kept[-1].offset + 1 if kept else self.first[topic, partition]

    def read(self, topic: str, partition: int, start: int) -> ListReader:
        assert start >= self.first[topic, partition]
        return ListReader(self.records[topic, partition], start, self._most)

    def close(self) -> None:
        pass

    def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None = None,
        timestamp: int = _LATER,
    ) -> None:
        """Append a record, where Kafka's own partitioner puts its key."""
        home = partition_of(key or b"", self._partitions[topic]) if partition is None else partition
        _, end = self.bounds(topic, home)
        self.records[topic, home].append(LogRecord(end, timestamp, 0, key, value))

    def expire(self, topic: str, partition: int, first: int) -> None:
        """Retention removes what lies below ``first``."""
        self.first[topic, partition] = first
        kept = self.records[topic, partition]
        kept[:] = [each for each in kept if each.offset >= first]


class Fleet:
    """One shard's worker after the other, on topics that are there."""

    def __init__(self, policy: Policy, clock: Clock = Clock.EVENT, changes: int = 1, seed: int = 0) -> None:
        self.log = ListLog({**dict.fromkeys(TOPICS.values(), 1), CHANGES: changes, SNAPSHOTS: changes, LETTERS: 1})
        self.store = MemoryStore()
        self.store.register(1, "group")
        self.policy, self.clock = policy, clock
        self._random = random.Random(seed)
        self._trainer, self._drawn = Trainer(self.store), 0
        self._published: set[str] = set()

    def put(self, events: Iterable[Mapping[str, Any]], timestamps: Iterable[int] | None = None) -> None:
        """Produce events; ``timestamps`` are microseconds."""
        events = list(events)
        stamps = [_LATER] * len(events) if timestamps is None else [each // _MS for each in timestamps]
        for event, stamp in zip(events, stamps, strict=True):
            customer = event.get("customer_id")
            key = None if customer is None else customer.encode()
            self.log.put(ROLE_OF_KIND[event["kind"]], key, json.dumps(event).encode(), timestamp=stamp)

    @property
    def ends(self) -> dict[Role, int]:
        return {role: self.log.bounds(topic, 0)[1] for role, topic in TOPICS.items()}

    def run(self, *, crashes: int = 0, publish: bool = True, in_order: bool = True) -> None:
        """Fold everything, in batches of any size, with so many crashes after a commit or after publishing.

        ``in_order`` says that topics are folded merged by time, as they are while none of them lags for long.
        """
        for crash in reversed(range(crashes + 1)):
            activations = Activations(self.store, self.policy)
            processor = BatchProcessor(Shard(0, 1, TOPICS), activations, self.store, self.clock)
            header = processor.load(dict.fromkeys(ROLES, 0), {})

            def wait(activations: Activations = activations, processor: BatchProcessor = processor) -> None:
                if publish:
                    self.publish()
                if not activations.merge(1):
                    processor.give_up()

            folder = Folder(
                processor,
                header,
                self.log,
                awaiting=wait,
                taken=self._taken if publish else _nothing,
                batch_size=self._random.choice((50, 1000) if self.policy.needs_population else (1, 7, 50, 1000)),
            )
            ends = self.ends
            if crash and in_order:
                ends = self._cut(self._random.random(), header.offsets)
            elif crash:
                ends = {role: self._random.randint(header.offsets[role], end) for role, end in ends.items()}
            folder.fold_to(ends)
        if publish:
            self.publish()

    def _cut(self, share: float, least: Mapping[Role, int]) -> dict[Role, int]:
        """Where each topic is when that share of all events has been folded in the order of time."""
        instants = {
            role: np.maximum.accumulate([self._instant(record) for record in self.log.records[topic, 0]] or [0])
            for role, topic in TOPICS.items()
        }
        every = np.sort(np.concatenate(list(instants.values())))
        at = every[int(share * len(every))]
        return {
            role: max(least[role], min(int(np.searchsorted(column, at)), self.ends[role]))
            for role, column in instants.items()
        }

    def _instant(self, record: LogRecord) -> int:
        if self.clock is Clock.INGESTION:
            return record.timestamp * _MS
        try:
            return parse(json.loads(record.value or b"")["occurred_at"])
        except (ValueError, KeyError, TypeError):
            return 0

    def _taken(self, step: Step, batch: Batch | None) -> None:
        if self._random.random() < 0.5:
            self.publish(acknowledge=self._random.random() < 0.7)

    def publish(self, *, acknowledge: bool = True) -> None:
        """Send what the outbox holds, as the real publisher would."""
        for entry in self.store.header(0).entries:
            withheld = set(entry.withheld)
            for place, change in enumerate(entry.changes):
                if place not in withheld:
                    self.log.put(CHANGES, change["customer_id"].encode(), orjson.dumps(change))
            for customer, value in entry.wire.snapshots():
                self.log.put(SNAPSHOTS, customer.encode(), value)
            for customer in entry.forgotten:
                self.log.put(SNAPSHOTS, customer.encode(), None)
            for letter in entry.dead_letters:
                self.log.put(LETTERS, None, orjson.dumps(letter), 0)
            if entry.draws and entry.id not in self._published:
                start, self._drawn = self._drawn, self._drawn + len(entry.draws)
                self._trainer.learn(start, self._drawn, entry.draws)
            self._published.add(entry.id)
            if acknowledge:
                self.store.acknowledge(0, [entry.id])

    def verify(self, **more: Any) -> ShardReport:
        """The audit of the only shard."""
        outputs = OutputNames(CHANGES, SNAPSHOTS, LETTERS)
        audit = Audit(self.store, self.log, TOPICS, 1, self.clock, outputs, pause=lambda seconds: None, **more)
        return audit.verify(0)


def _nothing(step: Step, batch: Batch | None) -> None:
    pass
