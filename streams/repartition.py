"""Repartitioning: a fleet's state for more partitions, while no worker runs.

Every step may be repeated, and what has been done is found again: workers cannot start in between. First every shard
gets everything that was sent to it under the old number, and what that changes is published (``Drain``); then
customers move (``move``), by one hand: shards are claimed for it, so that a command that was forgotten writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from faust.types import TP

from models.events import Role
from models.instants import FOREVER, NEVER
from models.learner import LearnerState
from models.partitioner import partitions_of
from streams.activations import Activations
from streams.clock import CLOCK
from streams.inbox import Batch
from streams.kafka.commits import Told
from streams.kafka.transport import LogRange
from streams.ports import Publisher, StateStore, Upkeep
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.shard_log import Folder, Log
from streams.shards import start_of
from streams.trainer import Trainer

#: Commits between two times of publishing.
_PUBLISH_EVERY: Final = 20
#: The group's commit of each topic's partitions: the offset, if there is one, and what has been told by then.
Commits = Mapping[tuple[str, int], tuple[int | None, Told]]


class _Awaited(Exception):
    """The shard needs cut-offs that other shards have a part in."""


class Drain:
    """Folds what no worker has folded, and publishes it; ``commits`` say what of it is history, as to a worker."""

    def __init__(
        self,
        store: StateStore,
        activations: Activations,
        log: Log,
        publisher: Publisher,
        clock: Clock,
        batch_size: int,
        commits: Commits,
        samples_topic: str,
    ) -> None:
        self._store = store
        self._activations = activations
        self._log = log
        self._publisher = publisher
        self._clock = clock
        self._batch_size = batch_size
        self._commits = commits
        self._samples_topic = samples_topic
        self._steps = 0

    def every(self, shards: Sequence[Shard]) -> Iterator[int]:
        """Bring all shards of a fleet to the end of their topics; yields the number of each that is there.

        Where cut-offs are due, each waits for the others. Those that come to their end before are waited for in vain:
        then the rest goes on with the cut-offs of before, as workers do.
        """
        left, patient = list(shards), True
        while left:
            waiting = []
            for shard in left:
                if self._bring(shard, patient):
                    yield shard.number
                else:
                    waiting.append(shard)
            left, patient = waiting, bool(waiting) and self._merged(len(shards))
        learn_rest(self._store, self._log, self._samples_topic)

    def _merged(self, partitions: int) -> bool:
        """Activate the cut-offs that the shards wait for, if all of them have said what it takes."""
        activations = self._activations
        if activations.policy(activations.active.policy_version).clusters:
            learn_rest(self._store, self._log, self._samples_topic)
        return activations.merge(partitions) or activations.merge(partitions, models=False)

    def _bring(self, shard: Shard, patient: bool) -> bool:
        """Bring one shard to the end of its topics, or to where it needs cut-offs. Returns whether it is at the end."""
        processor = BatchProcessor(shard, self._activations, self._store, self._clock)
        logs = {role: self._range(topic, shard.number) for role, topic in shard.topics.items()}
        stored = self._store.header(shard.number).offsets
        starts = {
            role: start_of(TP(shard.topics[role], shard.number), kept, stored.get(role)) for role, kept in logs.items()
        }
        header = processor.load(
            {role: start for role, (start, _) in starts.items()},
            {role: history for role, (_, history) in starts.items()},
            max(kept.told_until for kept in logs.values()),
        )
        self._publish(shard.number)

        def taken(step: Step, batch: Batch | None) -> None:
            self._steps += 1
            if self._steps % _PUBLISH_EVERY == 0:
                self._publish(shard.number)

        def awaiting() -> None:
            if patient:
                raise _Awaited
            processor.give_up()

        def latest() -> int:
            ahead = CLOCK.latest() + processor.policy.events.allowed_skew
            return FOREVER if self._clock is Clock.EVENT else ahead

        folder = Folder(
            processor, header, self._log, taken=taken, awaiting=awaiting, latest=latest, batch_size=self._batch_size,
            most=self._batch_size,
        )  # fmt: skip
        ends: dict[Role, int] = {role: kept.end for role, kept in logs.items()}
        there = True
        try:
            folder.fold_to(ends)
        except _Awaited:
            there = False
        finally:
            folder.close()
        self._publish(shard.number)
        return there

    def _range(self, topic: str, partition: int) -> LogRange:
        committed, told = self._commits.get((topic, partition), (None, Told()))
        return LogRange(*self._log.bounds(topic, partition), committed, *told)

    def _publish(self, shard: int) -> None:
        entries = self._store.header(shard).entries
        if entries:
            asyncio.run(self._publisher.publish(entries))
            self._store.acknowledge(shard, [entry.id for entry in entries])


def learn_rest(store: StateStore, log: Log, topic: str) -> None:
    """Learn what has been drawn and not been learned from."""
    trainer = Trainer(store)
    at = trainer.load()
    first, end = log.bounds(topic, 0)
    start = at if at is not None and first <= at <= end else first
    reader = log.read(topic, 0, start)
    try:
        while reader.position < end:
            before = reader.position
            records = reader.take(end)
            trainer.learn(before, reader.position, [each.value for each in records], [each.offset for each in records])
    finally:
        reader.close()


def move(store: Upkeep, source: int, old: int, new: int, token: str) -> int:
    """Move the customers of one shard that belong to others now. Returns how many.

    All shards must be claimed with the token; raises StaleOwner once somebody else has claimed one.
    """
    shards = range(source + old, new, old)
    store.spread(source, shards, str(old), token)
    leaving: dict[int, list[str]] = {}
    for rows in store.rows(source):
        places = partitions_of([customer.encode() for customer, _ in rows], new).tolist()
        parts: dict[int, list[tuple[str, bytes]]] = {}
        for place, row in zip(places, rows, strict=True):
            if place != source:
                parts.setdefault(place, []).append(row)
        for shard, part in parts.items():
            store.put_rows(shard, part, token)
            leaving.setdefault(shard, []).extend(customer for customer, _ in part)
    # Only when all of them are where they belong.
    for customers in leaving.values():
        store.remove_rows(source, customers, token)
    return sum(map(len, leaving.values()))


def widen_learners(store: StateStore, old: int, new: int) -> None:
    """Let learners expect the draws of more shards; what each shard has drawn, it has drawn of all its customers."""
    offset, stored = store.learners()
    learners = {name: LearnerState.parse(each) for name, each in stored.items()}
    widened = {
        name: _widened(store, state, old, new).encode() for name, state in learners.items() if state.shards != new
    }
    if widened and offset is not None:
        store.commit_learners(offset, offset, widened, {})


def _widened(store: StateStore, state: LearnerState, old: int, new: int) -> LearnerState:
    first = dict(state.first)
    for shard in range(old, new):
        summarised = store.header(shard % old).summarised
        first[shard] = NEVER if summarised is None else summarised
    return state.model_copy(update={"shards": new, "first": dict(sorted(first.items()))})
