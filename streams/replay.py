"""Replay: recorded events through the very processor that workers run, in process, on the memory store.

The same input gives the same changes, byte for byte, whatever the batch size; input in time order gives the same
changes, but for ``decided_at``, whatever the number of shards, as long as the population's summaries are exact
(models/population.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import orjson

from models.activation import Activation
from models.batch import EventBatch, Refusal
from models.changes import DeadLetter, SegmentChanged, dead_letter
from models.counts import Count
from models.events import ROLES, Role
from models.instants import FOREVER, NEVER, parse
from models.outcome import Outcome
from models.partitioner import partitions_of
from models.policy import Policy, default_policy
from models.wire import NO_EVENT
from streams.activations import Activations
from streams.commit import Range
from streams.customers import customers_of, segment_sizes
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.recorded import RecordedEvent, recorded_event
from streams.store.memory import MemoryStore
from streams.trainer import Trainer


class ReplayRecord(NamedTuple):
    """A recorded event as a Kafka record; ``offset`` is its place in the whole input."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    source: str
    line: int
    timestamp_type: int = 0


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
    segments: dict[str, Count] = field(default_factory=dict)
    _stores: list[tuple[MemoryStore, int]] = field(default_factory=list)

    def customers(self) -> Iterator[dict[str, Any]]:
        """Every customer at the end, by customer_id."""
        every = [each for store, shard in self._stores for each in customers_of(store, shard)]
        return iter(sorted(every, key=lambda customer: str(customer["customer_id"])))


class Replay:
    """Feeds recorded events to one processor a shard."""

    def __init__(self, policy: Policy, shards: int = 1, batch_size: int = 5000) -> None:
        store = MemoryStore()
        topics: dict[Role, str] = {role: role for role in ROLES}
        self._activations = Activations(store, policy)
        self._processors = [
            BatchProcessor(Shard(number, shards, topics), self._activations, store, Clock.EVENT)
            for number in range(shards)
        ]
        for processor in self._processors:
            processor.load(dict.fromkeys(ROLES, 0), {})
        self._batch_size = batch_size
        self._done = [0] * shards
        self._read = 0
        self._placed: list[_Placed] = []
        self._refused: dict[int, DeadLetter] = {}
        self._store = store
        self._trainer, self._drawn = Trainer(store), 0

    @property
    def activations(self) -> list[Activation]:
        """What has come into force so far: the policy, then each of the cut-offs taken."""
        return [self._activations[number] for number in range(1, self._activations.latest + 1)]

    def feed(self, events: Iterable[RecordedEvent]) -> Iterator[int]:
        """Process all events; yields, after every batch, how many have been read."""
        events = iter(events)
        while batch := list(islice(events, self._batch_size)):
            self._process(batch)
            yield self._read

    def finish(self, until: int | None = None) -> Replayed:
        """Let every shard's time reach ``until`` (microseconds), or else the last instant any shard has seen."""
        end = until if until is not None else max(processor.time for processor in self._processors)
        if end != NEVER:
            self._let_pass(end)
            for processor in self._processors:
                self._advance(processor, end)
        sizes, _ = segment_sizes(self._store, len(self._processors))
        self._placed.sort(key=lambda placed: placed[:4])
        return Replayed(
            [placed.change for placed in self._placed],
            [self._refused[offset] for offset in sorted(self._refused)],
            self._read,
            sizes,
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
        batches = [self._validated(processor, part) for processor, part in zip(self._processors, records, strict=True)]
        offsets = np.concatenate([batch.offset for batch in batches])
        order = np.argsort(offsets, kind="stable")
        instants = np.concatenate([batch.occurred_at for batch in batches])[order]
        reached = np.maximum.accumulate(instants)
        while (position := int(np.searchsorted(reached, self._stop_at))) < len(reached):
            self._fold_upto(batches, int(offsets[order[position]]))
            self._let_pass(int(reached[position]))
        self._fold_upto(batches, self._read)

    @property
    def _stop_at(self) -> int:
        """Where time must stop next for the population, on all shards alike."""
        return min(processor.stop_at for processor in self._processors)

    def _validated(self, processor: BatchProcessor, records: list[tuple[Role, ReplayRecord]]) -> EventBatch:
        """A shard's records in the input's order; those that cannot be used become dead letters."""
        batches: list[EventBatch] = []
        for role in ROLES:
            batch, refused = processor.read(role, [record for each, record in records if each == role], FOREVER)
            batches.append(batch)
            self._refuse(refused)
        batch = EventBatch.concat(batches)
        return batch.take(np.argsort(batch.offset, kind="stable"))

    def _fold_upto(self, batches: list[EventBatch], end: int) -> None:
        """Fold each shard's records before the offset ``end`` that have not been folded."""
        for processor, batch in zip(self._processors, batches, strict=True):
            shard = processor.shard.number
            covered = Range(self._done[shard], end)
            first, last = np.searchsorted(batch.offset, covered).tolist()
            if first == last:
                continue
            part = batch if last - first == len(batch) else batch.take(np.arange(first, last))
            self._done[shard] = end
            step = processor.fold(part, (), dict.fromkeys(ROLES, covered))
            self._commit(processor, step, part)
            self._refuse(step.outcome.overflowed)

    def _refuse(self, refusals: Iterable[Refusal]) -> None:
        for refusal in refusals:
            record: Any = refusal.record
            letter = dead_letter(refusal, record.source, 0)
            letter["offset"] = record.line
            # A tick reaches every shard, and is refused once.
            self._refused[record.offset] = letter

    def _let_pass(self, target: int) -> None:
        """Summarise the population, and take cut-offs, at every instant for that up to ``target``, on all shards."""
        while (instant := self._stop_at) <= target:
            for processor in self._processors:
                while processor.stop_at <= instant:
                    step = processor.stop(target)
                    if step is None:
                        processor.give_up()
                    else:
                        self._commit(processor, step, None)
                self._advance(processor, instant)
            while self._activations.merge(len(self._processors)):
                pass

    def _advance(self, processor: BatchProcessor, instant: int) -> None:
        while (step := processor.advance(instant)) is not None:
            self._commit(processor, step, None)

    def _commit(self, processor: BatchProcessor, step: Step, batch: EventBatch | None) -> None:
        processor.commit(step)
        entry = step.commit.entry
        if entry is not None:
            if entry.draws:
                start, self._drawn = self._drawn, self._drawn + len(entry.draws)
                self._trainer.learn(start, self._drawn, entry.draws)
            self._store.acknowledge(processor.shard.number, [entry.id])
        self._collect(step.outcome, batch)

    def _collect(self, outcome: Outcome, batch: EventBatch | None) -> None:
        columns = zip(
            outcome.changes.effective_at.tolist(), outcome.changes.event.tolist(), outcome.published, strict=True
        )
        withheld = set(outcome.withheld)
        for place, (effective_at, event, change) in enumerate(columns):
            if place in withheld:
                continue
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
