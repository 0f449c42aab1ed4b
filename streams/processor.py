"""BatchProcessor: one shard's batches through the segmenter into commits.

Synchronous and free of Kafka, so that workers, replays and tests run the same code. What Redis holds is the truth:
whoever gets an exception from ``commit`` calls ``load`` again before anything else.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from models.batch import EventBatch, Reader, Record, Refusal, read
from models.changes import dead_letter
from models.counts import SegmentCounts
from models.events import ROLES, Role
from models.instants import NEVER, Instants
from models.rows import layout_of, load, pack, relabel_deadlines, unpack
from models.segmenter import Outcome, Segmenter
from models.table import AttributeValues, CustomerTable
from streams.commit import Count, OutboxEntry, Range, ShardCommit, ShardHeader
from streams.ports import StateStore


class Clock(StrEnum):
    """Where a shard's time comes from: the events' ``occurred_at``, or the records' Kafka timestamps."""

    EVENT = "event"
    INGESTION = "ingestion"

    def instants(self, batch: EventBatch) -> Instants:
        """Each record's own instant under this clock."""
        return batch.occurred_at if self is Clock.EVENT else batch.recorded_at


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of which topics: ``number`` is the partition of every topic in ``topics``."""

    number: int
    partitions: int
    topics: Mapping[Role, str]


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch or instant did, and what must be committed for it."""

    commit: ShardCommit
    outcome: Outcome


class BatchProcessor:
    """Holds one shard's table between commits."""

    def __init__(self, shard: Shard, segmenter: Segmenter, store: StateStore, clock: Clock) -> None:
        self.shard: Final = shard
        self.clock: Final = clock
        self._segmenter = segmenter
        self._store = store
        self._layout = layout_of(segmenter.policy, segmenter.dimensions)
        self.token = ""
        self.time = NEVER
        self.table = CustomerTable(segmenter.policy)
        self.counts = SegmentCounts(segmenter.dimensions)
        self._backfill_until = np.zeros(len(ROLES), dtype=np.int64)
        self._told_until = NEVER
        self._stored_values: dict[str, int] = {}
        self._next_commit = 1

    def load(
        self, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int], told_until: int = NEVER
    ) -> ShardHeader:
        """Take the shard and build its table from the store.

        ``offsets`` is where reading starts if nothing is stored; records below ``backfill_until``, or below what was
        stored of it at the first start, are history, and so are deadlines before ``told_until``. Raises
        StoreUnavailable or StateError.
        """
        segmenter = self._segmenter
        self.token = secrets.token_hex(8)
        header = self._store.acquire(self.shard.number, self.token, offsets, backfill_until)
        self.table = CustomerTable(segmenter.policy)
        for attribute, texts in header.values.items():
            if attribute in self.table.values:
                self.table.values[attribute] = AttributeValues(segmenter.policy.attributes.max_values, texts)
        for stored in self._store.rows(self.shard.number):
            for group in unpack(stored, header.layouts):
                load(self.table, segmenter.dimensions, group, header.values)
        self.time = NEVER if header.time is None else header.time
        relabel_deadlines(self.table, segmenter.dimensions, self.time)
        self.counts = SegmentCounts(segmenter.dimensions)
        self.counts.update(self.table, self.table.rows)
        self._stored_values = {name: len(texts) for name, texts in header.values.items()}
        self._next_commit = header.commits + 1
        self._told_until = told_until
        self._backfill_until = np.array(
            [max(backfill_until.get(role, 0), header.backfill_until.get(role, 0)) for role in ROLES], dtype=np.int64
        )
        return header

    def read(self, role: Role, records: Sequence[Record], latest: int) -> tuple[EventBatch, list[Refusal]]:
        """Validate one topic's records; ``latest`` is the last instant a record's own timestamp may bear."""
        reader = Reader(self._segmenter.policy, self.shard.number, self.shard.partitions, latest)
        return read(role, records, reader)

    def fold(self, batch: EventBatch, refusals: Sequence[Refusal], ranges: Mapping[Role, Range]) -> Step:
        """Fold a batch, which covers ``ranges`` of the shard's topics, into the table."""
        times = np.maximum.accumulate(np.maximum(self.clock.instants(batch), self.time))
        history = batch.offset < self._backfill_until[batch.rank]
        outcome = self._segmenter.apply(self.table, batch, times, history, self._told_until)
        outcome.time = max(outcome.time, self.time)
        return self._step(outcome, [*refusals, *outcome.overflowed], ranges)

    def advance(self, instant: int, most: int | None = None) -> Step | None:
        """Let time pass to ``instant`` without an event, for at most ``most`` rows; None if it changes no row."""
        instant = max(instant, self.time)
        outcome = self._segmenter.advance(self.table, instant, False, most, self._told_until)
        if not len(outcome.touched):
            self.time = instant
            return None
        return self._step(outcome, (), {})

    def lapse_lag(self, instant: int) -> int:
        """Microseconds by which the oldest deadline that has not been applied lies before ``instant``."""
        table = self.table  # a load in another thread may replace it
        rows = table.due(instant)
        return int(instant - table.deadline[rows].min()) if len(rows) else 0

    def commit(self, step: Step) -> None:
        """Store a step. Raises StaleOwner, LostBatch or StoreUnavailable; then the table must be loaded again."""
        self._store.commit(step.commit)
        self.time = step.outcome.time
        for key in step.commit.values:
            name = key.rpartition(":")[0]
            self._stored_values[name] = self._stored_values.get(name, 0) + 1
        self._next_commit += 1

    def _step(self, outcome: Outcome, refusals: Sequence[Refusal], ranges: Mapping[Role, Range]) -> Step:
        table, topics = self.table, self.shard.topics
        self.counts.update(table, outcome.touched)
        letters = [dead_letter(each, topics[each.role], self.shard.number) for each in refusals]
        # What a slice has left behind must be due again for whoever loads the shard next.
        left = table.due(outcome.time)
        stored_time = int(table.deadline[left].min()) if len(left) else outcome.time
        entry = None
        if outcome.published or letters:
            entry = OutboxEntry(f"{self._next_commit}-{self.token}", outcome.published, letters)
        customers = [table.customer[row] for row in outcome.dirty.tolist()]
        commit = ShardCommit(
            shard=self.shard.number,
            token=self.token,
            number=self._next_commit,
            ranges=ranges,
            time=stored_time,
            policy_version=self._segmenter.policy.version,
            layout=self._layout,
            rows=list(zip(customers, pack(table, self._layout, outcome.dirty), strict=True)),
            erased=outcome.erased,
            segments=self.segments(),
            values={
                f"{name}:{code}": values.texts[code]
                for name, values in table.values.items()
                for code in range(self._stored_values.get(name, 0), len(values.texts))
            },
            entry=entry,
        )
        return Step(commit, outcome)

    def segments(self) -> dict[str, Count]:
        """Size of each segment on this shard, by ``dimension:label``."""
        return {
            f"{dimension.name}:{label}": Count(int(customers), int(revenue))
            for d, dimension in enumerate(self._segmenter.dimensions)
            for label, customers, revenue in zip(
                dimension.labels, self.counts.customers[d], self.counts.revenue[d], strict=True
            )
        }
