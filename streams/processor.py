"""BatchProcessor: one shard's batches through the segmenter into commits.

Synchronous and free of Kafka, so that workers, replays and tests run the same code. What Redis holds is the truth:
whoever gets an exception from ``commit`` calls ``load`` again before anything else.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from typing import Final

import numpy as np

from models.batch import EventBatch, Record, Refusal
from models.changes import dead_letter
from models.counts import Count, SegmentCounts
from models.events import ROLES, Role
from models.instants import FOREVER, NEVER, Instants
from models.outcome import Outcome, nothing
from models.policy import Policy
from models.population import Cutoffs, Summary, summary_of
from models.records import Reader, read
from models.rows import layout_of, load, pack, unpack
from models.sampling import draw_of
from models.table import AttributeValues, CustomerTable
from streams.activations import Activations
from streams.ahead import ahead
from streams.commit import OutboxEntry, Range, ShardCommit, ShardHeader, Silence
from streams.ports import StateStore
from streams.silence import heard, heard_refusals, is_silent

#: Instants at which a shard is summarised while its time moves by one record, at most.
MOST_SUMMARIES: Final = 400
#: Summaries of a shard that are kept.
_KEPT_SUMMARIES: Final = 8


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
    """What one batch or instant did, and what must be committed for it.

    ``reload`` says that the shard must be loaded again after the commit: another policy is in force.
    """

    commit: ShardCommit
    outcome: Outcome
    reload: bool = False


class BatchProcessor:
    """Holds one shard's table between commits."""

    def __init__(self, shard: Shard, activations: Activations, store: StateStore, clock: Clock) -> None:
        self.shard: Final = shard
        self.clock: Final = clock
        self.activations: Final = activations
        self._store = store
        self._segmenter = activations.segmenter(activations.latest, NEVER)
        self.token = ""
        self.time = NEVER
        self.table = CustomerTable(self._segmenter.policy)
        self.counts = SegmentCounts(self.table)
        self._layout = layout_of(self.table)
        self._backfill_until = np.zeros(len(ROLES), dtype=np.int64)
        self._told_until = NEVER
        self._stored_values: dict[str, int] = {}
        self._next_commit = 1
        self._summarised: int | None = None
        self._awaited: int | None = None
        self._resized = False
        self._silence = Silence()
        #: Not empty if the shard's customers were made of other partitions' records, too.
        self.lineage = ""
        self._offsets: dict[Role, int] = {}

    def load(
        self, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int], told_until: int = NEVER
    ) -> ShardHeader:
        """Take the shard and build its table from the store.

        ``offsets`` is where reading starts if nothing is stored; records below ``backfill_until``, or below what was
        stored of it at the first start, are history, and so are deadlines before ``told_until``. Raises
        StoreUnavailable or StateError.
        """
        self.token = secrets.token_hex(8)
        header = self._store.acquire(self.shard.number, self.token, offsets, backfill_until)
        self.activations.refresh()
        self.time = NEVER if header.time is None else header.time
        self._silence, self._offsets, self.lineage = header.silence, dict(header.offsets), header.lineage
        if header.activation:
            self._segmenter = self.activations.segmenter(header.activation, header.since)
        else:
            first = self.activations.newer_policy(0, self._latest) or self.activations.latest
            self._segmenter = self.activations.segmenter(first, self.time)
        policy = self._segmenter.policy
        # The old table's memory is free before the new one is filled, which nobody else sees until it is whole.
        self.table = CustomerTable(policy)
        table = CustomerTable(policy)
        for name, known in table.values.items():
            if name in header.values:
                table.values[name] = AttributeValues(known.most, header.values[name])
        for name in table.tally:
            table.widen(name, len(table.values[name].texts))
        settled = self.time if header.settled is None else header.settled
        table.reserve(self._store.size(self.shard.number))
        parts = (unpack(stored, header.layouts) for stored in self._store.rows(self.shard.number))
        for group in chain.from_iterable(ahead(parts)):
            rows = load(table, group, header.values)
            self._segmenter.resume(table, rows, settled, self.time)
        self.table, self.counts = table, SegmentCounts(table)
        stored_sizes = self._store.segments(self.shard.number)
        self._resized = header.time is not None and stored_sizes.keys() != self.counts.sizes().keys()
        self._stored_values = {name: len(texts) for name, texts in header.values.items()}
        self._next_commit = header.commits + 1
        self._summarised = header.summarised
        self._awaited = header.summarised
        if header.summarised is not None:
            in_force = self._segmenter.cutoffs.as_of >= header.summarised
            if in_force or self.time > header.summarised + policy.population.settle:
                self._awaited = None
        self._told_until = told_until
        self._backfill_until = np.array(
            [max(backfill_until.get(role, 0), header.backfill_until.get(role, 0)) for role in ROLES], dtype=np.int64
        )
        return header

    def read(self, role: Role, records: Sequence[Record], latest: int) -> tuple[EventBatch, list[Refusal]]:
        """Validate one topic's records; ``latest`` is the last instant a record's own timestamp may bear."""
        reader = Reader(self._segmenter.policy, self.shard.number, self.shard.partitions, latest)
        return read(role, records, reader)

    def fold(
        self,
        batch: EventBatch,
        refusals: Sequence[Refusal],
        ranges: Mapping[Role, Range],
        most: int | None = None,
    ) -> Step:
        """Fold a batch, which covers ``ranges`` of the shard's topics, into the table.

        Of the rows that it does not touch, the due deadlines of at most ``most`` are applied.
        """
        times = np.maximum.accumulate(np.maximum(self.clock.instants(batch), self.time))
        history = batch.offset < self._backfill_until[batch.rank]
        outcome = self._segmenter.apply(self.table, batch, times, history, self._told_until, most)
        outcome.time = max(outcome.time, self.time)
        return self._step(outcome, [*refusals, *outcome.overflowed], ranges, batch=batch)

    def advance(self, instant: int, most: int | None = None) -> Step | None:
        """Let time pass to ``instant`` without an event, for at most ``most`` rows; None if it changes no row."""
        instant = max(instant, self.time)
        outcome = self._segmenter.advance(self.table, instant, False, most, self._told_until)
        if not len(outcome.before.rows):
            self.time = instant
            return None
        return self._step(outcome, (), {})

    def lapse_lag(self, instant: int) -> int:
        """Microseconds by which the oldest deadline that has not been applied lies before ``instant``."""
        return instant - self.table.settled(instant)

    @property
    def silent(self) -> bool:
        """Whether the shard is rebuilt and has not come yet to where it was."""
        return is_silent(self._silence, self._offsets, self.time)

    @property
    def _latest(self) -> int:
        """The latest activation that may be taken."""
        activations = self.activations
        return activations.before_policy(self._silence.activation) if self.silent else activations.latest

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._segmenter.policy

    @property
    def cutoffs(self) -> Cutoffs:
        """The cut-offs in force."""
        return self._segmenter.cutoffs

    @property
    def activation(self) -> int:
        """The number of the activation in force."""
        return self._segmenter.number

    # The population: see models/population.py. Summaries are made, and cut-offs taken, at fixed instants of the
    # shard's time, so that what is read again is labelled as it was the first time.

    @property
    def stop_at(self) -> int:
        """The next instant that time must not pass before ``stop`` has been called for it; FOREVER if there is none.

        Before a shard's time begins it is NEVER: it begins with a summary that nobody is in.
        """
        if not self.policy.needs_population:
            return FOREVER
        if self.time == NEVER:
            return NEVER
        due = FOREVER if self._awaited is None else self._awaited + self.policy.population.settle
        return min(self._next_summary, due)

    @property
    def _next_summary(self) -> int:
        now = self._floor(self.time)
        # Instants that were passed while the policy needed no population are not made up for.
        return now if self._summarised is None else max(now, self._floor(self._summarised) + self._every)

    @property
    def _every(self) -> int:
        return self.policy.population.every

    def _floor(self, instant: int) -> int:
        return instant // self._every * self._every

    def stop(self, target: int, most: int | None = None) -> Step | None:
        """What is to be committed at ``stop_at`` on the way to ``target``; None if cut-offs are not there yet.

        To be called until ``stop_at`` lies after the target.
        """
        stop = self.stop_at
        if stop == NEVER:
            begin = self._floor(target)
            return self._summarise(begin, nothing(begin), Summary.empty())
        summarising = stop == self._next_summary
        if summarising:
            # Of very many instants at once, as after an event with a clock gone wild, the last are enough.
            stop = max(stop, self._floor(target) - MOST_SUMMARIES * self._every)
        step = self.advance(stop, most)
        if step is not None:
            return step
        if summarising:
            return self._summarise(stop, nothing(self.time), summary_of(self.table, stop))
        number = self.activations.cutoffs_since(self.activation, self._awaited or NEVER, self._latest)
        return None if number is None else self._adopt(number)

    def _summarise(self, instant: int, outcome: Outcome, summary: Summary) -> Step:
        """What a shard says about its customers as of an instant: its summary, and draws for what is learned."""
        draws = [
            draw_of(
                *(self.table, name, instant, self.shard.number, self.shard.partitions), begins=self.time == NEVER
            ).encode()
            for name in self.policy.clusters
            if instant > self._silence.summarised
        ]
        return self._step(outcome, (), {}, (instant, summary), draws)

    def give_up(self) -> None:
        """Go on without the cut-offs that ``stop`` waits for; they are taken when they come."""
        self._awaited = None

    def follow(self) -> Step | None:
        """What is to be committed because other cut-offs or another policy are in force now.

        None if none are, or while what the last ones have changed is not applied yet.
        """
        if self.table.settled(self.time) < self.time:
            return None
        number = self.activations.newer_policy(self.activation, self._latest)
        if number is None:
            number = self.activations.cutoffs_at(self.activation, self.time, self._latest)
        if number is not None:
            return self._adopt(number)
        # Another policy has other segments, and their sizes are to be seen even if nobody moves.
        return self._step(nothing(self.time), (), {}) if self._resized else None

    def _adopt(self, number: int) -> Step:
        segmenter = self.activations.segmenter(number, self.time)
        self._segmenter = segmenter
        if self._awaited is not None and segmenter.cutoffs.as_of >= self._awaited:
            self._awaited = None
        by_policy = self.activations[number].cause == "policy"
        if not by_policy:
            segmenter.adopt(self.table)
        return replace(self._step(nothing(self.time), (), {}), reload=by_policy)

    def commit(self, step: Step) -> None:
        """Store a step. Raises StaleOwner, LostBatch or StoreUnavailable; then the table must be loaded again."""
        self._store.commit(step.commit)
        self._offsets.update({role: covered.end for role, covered in step.commit.ranges.items()})
        self._resized = False
        self.time = step.commit.time
        for key in step.commit.values:
            name = key.rpartition(":")[0]
            self._stored_values[name] = self._stored_values.get(name, 0) + 1
        if step.commit.summary is not None:
            # A policy that is new to a shard with customers must not hold them up until all shards have it.
            self._summarised = step.commit.summary[0]
            known = self.time > self._summarised or self.cutoffs.as_of >= self._summarised
            self._awaited = None if known else self._summarised
        self._next_commit += 1

    def _step(
        self,
        outcome: Outcome,
        refusals: Sequence[Refusal],
        ranges: Mapping[Role, Range],
        summary: tuple[int, Summary] | None = None,
        draws: Sequence[bytes] = (),
        batch: EventBatch | None = None,
    ) -> Step:
        table, topics, segmenter = self.table, self.shard.topics, self._segmenter
        self.counts.update(table, outcome.before)
        if self._silence.rebuild:
            # Also after it is there again: what was due by then may still be applied in parts.
            outcome = heard(outcome, self._silence, batch, segmenter.number)
            refusals = heard_refusals(refusals, self._silence)
        letters = [dead_letter(each, topics[each.role], self.shard.number) for each in refusals]
        entry = None
        if outcome.published or letters or outcome.forgotten or draws:
            name = f"{self._next_commit}-{self.token}"
            entry = OutboxEntry(name, outcome.published, letters, outcome.withheld, outcome.forgotten, draws)
        customers = table.index.names(outcome.dirty)
        layout = layout_of(table)
        # An equal one knows its text and its columns already.
        if layout != self._layout:
            self._layout = layout
        commit = ShardCommit(
            shard=self.shard.number,
            token=self.token,
            number=self._next_commit,
            ranges=ranges,
            time=outcome.time,
            # What a slice has left behind must be due again for whoever loads the shard next.
            settled=table.settled(outcome.time),
            activation=segmenter.number,
            since=segmenter.since,
            policy_version=segmenter.policy.version,
            layout=self._layout,
            rows=list(zip(customers, pack(table, self._layout, outcome.dirty), strict=True)),
            erased=outcome.erased,
            segments=self.counts.sizes(),
            values={
                f"{name}:{code}": values.texts[code]
                for name, values in table.values.items()
                for code in range(self._stored_values.get(name, 0), len(values.texts))
            },
            entry=entry,
            summary=None if summary is None else (summary[0], summary[1].cut().json),
            begins=ranges == {} and self.time == NEVER,
            forget=None if summary is None else summary[0] - _KEPT_SUMMARIES * self._every,
        )
        return Step(commit, outcome)

    def segments(self) -> dict[str, Count]:
        """Size of each segment on this shard, by ``dimension:label``."""
        return self.counts.sizes()
