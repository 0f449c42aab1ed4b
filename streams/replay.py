"""Replay: recorded events through the very processor that workers run, in process, on the memory store.

The same input gives the same changes, byte for byte, whatever the batch size; input in time order gives the same
changes, but for ``decided_at``, whatever the number of shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import orjson

from models.batch import EventBatch, Refusal
from models.changes import DeadLetter, SegmentChanged, dead_letter
from models.events import ROLES, Role
from models.instants import FOREVER, NEVER, parse
from models.partitioner import partitions_of
from models.policy import Policy, default_policy
from models.segmenter import NO_EVENT, Outcome, Segmenter
from streams.commit import Range
from streams.customers import customers_of
from streams.processor import BatchProcessor, Clock, Shard
from streams.recorded import RecordedEvent, recorded_event
from streams.store.memory import MemoryStore


class ReplayRecord(NamedTuple):
    """A recorded event as a Kafka record; ``offset`` is its place in the whole input."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    source: str
    line: int


class _Placed(NamedTuple):
    """A change with its place in files: effective_at, the input's order, customer_id, sequence."""

    effective_at: int
    position: float
    customer: str
    sequence: int
    change: SegmentChanged


@dataclass
class Replayed:
    """What a replay found; ``changes`` and ``dead_letters`` are in their defined order."""

    changes: list[SegmentChanged] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    events: int = 0
    segments: dict[str, tuple[int, int]] = field(default_factory=dict)
    _stores: list[tuple[MemoryStore, int]] = field(default_factory=list)

    def customers(self) -> Iterator[dict[str, Any]]:
        """Every customer at the end, by customer_id."""
        every = [each for store, shard in self._stores for each in customers_of(store, shard)]
        return iter(sorted(every, key=lambda customer: str(customer["customer_id"])))


class Replay:
    """Feeds recorded events to one processor a shard."""

    def __init__(self, policy: Policy, shards: int = 1, batch_size: int = 5000) -> None:
        store, segmenter = MemoryStore(), Segmenter(policy)
        topics: dict[Role, str] = {role: role for role in ROLES}
        self._processors = [
            BatchProcessor(Shard(number, shards, topics), segmenter, store, Clock.EVENT) for number in range(shards)
        ]
        for processor in self._processors:
            processor.load(dict.fromkeys(ROLES, 0), {})
        self._batch_size = batch_size
        self._done = [0] * shards
        self._read = 0
        self._placed: list[_Placed] = []
        self._refused: dict[int, DeadLetter] = {}
        self._store = store

    def feed(self, events: Iterable[RecordedEvent]) -> Iterator[int]:
        """Process all events; yields, after every batch, how many have been read."""
        events = iter(events)
        while batch := list(islice(events, self._batch_size)):
            self._process(batch)
            yield self._read

    def finish(self, until: int | None = None) -> Replayed:
        """Let every shard's time reach ``until`` (microseconds), or else the last instant any shard has seen."""
        end = until if until is not None else max(processor.time for processor in self._processors)
        for processor in self._processors:
            if end != NEVER and (step := processor.advance(end)) is not None:
                processor.commit(step)
                self._collect(step.outcome, None)
        segments: dict[str, tuple[int, int]] = {}
        for processor in self._processors:
            for name, count in self._store.segments(processor.shard.number).items():
                customers, revenue = segments.get(name, (0, 0))
                segments[name] = (customers + count.customers, revenue + count.revenue)
        self._placed.sort(key=lambda placed: placed[:4])
        return Replayed(
            [placed.change for placed in self._placed],
            [self._refused[offset] for offset in sorted(self._refused)],
            self._read,
            segments,
            [(self._store, processor.shard.number) for processor in self._processors],
        )

    def _process(self, events: list[RecordedEvent]) -> None:
        shards = len(self._processors)
        # What has no key lands on the first shard, where it becomes a dead letter.
        home = partitions_of([event.key or b"" for event in events], shards)
        records: list[list[tuple[Role, ReplayRecord]]] = [[] for _ in range(shards)]
        for shard, event in zip(home.tolist(), events, strict=True):
            self._read += 1
            record = ReplayRecord(
                self._read - 1, max(event.occurred_at, 0) // 1000 + 1, event.key, event.value, (), event.source,
                event.line,
            )  # fmt: skip
            targets = range(shards) if event.is_tick else [shard if event.key is not None else 0]
            for target in targets:
                records[target].append((event.role, record))
        for processor, part in zip(self._processors, records, strict=True):
            if part:
                self._fold(processor, part)

    def _fold(self, processor: BatchProcessor, records: list[tuple[Role, ReplayRecord]]) -> None:
        batches: list[EventBatch] = []
        refusals: list[Refusal] = []
        for role in ROLES:
            mine = [record for each, record in records if each == role]
            if mine:
                batch, refused = processor.read(role, mine, FOREVER)
                batches.append(batch)
                refusals += refused
        batch = EventBatch.concat(batches)
        batch = batch.take(np.argsort(batch.offset, kind="stable"))
        shard = processor.shard.number
        covered = Range(self._done[shard], self._read)
        self._done[shard] = self._read
        step = processor.fold(batch, refusals, dict.fromkeys(ROLES, covered))
        processor.commit(step)
        if step.commit.entry is not None:
            self._store.acknowledge(shard, [step.commit.entry.id])
        self._collect(step.outcome, batch)
        for refusal in [*refusals, *step.outcome.overflowed]:
            record: Any = refusal.record
            letter = dead_letter(refusal, record.source, 0)
            letter["offset"] = record.line
            # A tick reaches every shard, and is refused once.
            self._refused[record.offset] = letter

    def _collect(self, outcome: Outcome, batch: EventBatch | None) -> None:
        columns = zip(
            outcome.changes.effective_at.tolist(), outcome.changes.event.tolist(), outcome.published, strict=True
        )
        for effective_at, event, change in columns:
            position = float("inf") if event == NO_EVENT or batch is None else int(batch.offset[event])
            self._placed.append(_Placed(effective_at, position, change["customer_id"], change["sequence"], change))


def replay(
    events: Iterable[Mapping[str, Any]],
    policy: Policy | None = None,
    *,
    until: str | None = None,
    shards: int = 1,
    batch_size: int = 5000,
) -> list[SegmentChanged]:
    """The changes that ``events`` cause under ``policy`` (the default one if None), in the order of files.

    Events are dictionaries as on the topics, each with its ``kind``, in the order in which they are to be read.
    ``until`` is an RFC 3339 instant that every shard's time reaches at the end. Raises ValueError for an event that
    a worker would put on dead-letters.
    """
    run = Replay(policy or default_policy(), shards, batch_size)
    recorded = (recorded_event(orjson.dumps(event), "events", line) for line, event in enumerate(events, start=1))
    for _ in run.feed(recorded):
        pass
    result = run.finish(None if until is None else parse(until))
    if result.dead_letters:
        first = result.dead_letters[0]
        raise ValueError(f"event {first['offset']} cannot be used: {first['reason']} ({first['code']})")
    return result.changes
