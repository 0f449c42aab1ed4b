"""Repartitioning: a fleet's state for more partitions, while no worker runs.

Every step may be repeated, and what has been done is found again: workers cannot start in between. First every shard
gets everything that was sent to it under the old number, and what that changes is published (``Drain``); then
customers move (``move``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from models.events import Role
from models.instants import NEVER
from models.learner import LearnerState
from models.partitioner import partitions_of
from streams.activations import Activations
from streams.inbox import Batch
from streams.ports import Publisher
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.shard_log import Folder, Log
from streams.store.upkeep import RedisUpkeep
from streams.trainer import Trainer

#: Commits between two times of publishing.
_PUBLISH_EVERY: Final = 20


class Drain:
    """Folds what no worker has folded, and publishes it."""

    def __init__(
        self,
        store: RedisUpkeep,
        activations: Activations,
        log: Log,
        publisher: Publisher,
        clock: Clock,
        batch_size: int,
    ) -> None:
        self._store = store
        self._activations = activations
        self._log = log
        self._publisher = publisher
        self._clock = clock
        self._batch_size = batch_size
        self._commits = 0

    def shard(self, shard: Shard) -> Mapping[Role, int]:
        """Bring one shard to the end of its topics. Returns where they ended."""
        processor = BatchProcessor(shard, self._activations, self._store, self._clock)
        ends = {role: self._log.bounds(topic, shard.number)[1] for role, topic in shard.topics.items()}
        first = {role: self._log.bounds(topic, shard.number)[0] for role, topic in shard.topics.items()}
        header = processor.load(first, {})
        self._publish(shard.number)

        def taken(step: Step, batch: Batch | None) -> None:
            self._commits += 1
            if self._commits % _PUBLISH_EVERY == 0:
                self._publish(shard.number)

        folder = Folder(processor, header, self._log, taken=taken, batch_size=self._batch_size)
        try:
            folder.fold_to(ends)
        finally:
            folder.close()
        self._publish(shard.number)
        return ends

    def _publish(self, shard: int) -> None:
        entries = self._store.header(shard).entries
        if entries:
            asyncio.run(self._publisher.publish(entries))
            self._store.acknowledge(shard, [entry.id for entry in entries])


def learn_rest(store: RedisUpkeep, log: Log, topic: str) -> None:
    """Learn what has been drawn and not been learned from."""
    trainer = Trainer(store)
    at = trainer.load()
    first, end = log.bounds(topic, 0)
    start = first if at is None else at
    reader = log.read(topic, 0, start)
    try:
        while reader.position < end:
            before = reader.position
            records = reader.take(end)
            trainer.learn(before, reader.position, [each.value for each in records], [each.offset for each in records])
    finally:
        reader.close()


def move(store: RedisUpkeep, source: int, old: int, new: int) -> int:
    """Move the customers of one shard that belong to others now. Returns how many."""
    shards = range(source + old, new, old)
    store.spread(source, shards, str(old))
    leaving: dict[int, list[str]] = {}
    for rows in store.rows(source):
        places = partitions_of([customer.encode() for customer, _ in rows], new).tolist()
        parts: dict[int, list[tuple[str, bytes]]] = {}
        for place, row in zip(places, rows, strict=True):
            if place != source:
                parts.setdefault(place, []).append(row)
        for shard, part in parts.items():
            store.put_rows(shard, part)
            leaving.setdefault(shard, []).extend(customer for customer, _ in part)
    # Only when all of them are where they belong.
    for customers in leaving.values():
        store.remove_rows(source, customers)
    return sum(map(len, leaving.values()))


def widen_learners(store: RedisUpkeep, old: int, new: int) -> None:
    """Let learners expect the draws of more shards; what each shard has drawn, it has drawn of all its customers."""
    offset, stored = store.learners()
    learners = {name: LearnerState.parse(each) for name, each in stored.items()}
    widened = {
        name: _widened(store, state, old, new).encode() for name, state in learners.items() if state.shards != new
    }
    if widened and offset is not None:
        store.commit_learners(offset, offset, widened, {})


def _widened(store: RedisUpkeep, state: LearnerState, old: int, new: int) -> LearnerState:
    first = dict(state.first)
    for shard in range(old, new):
        summarised = store.header(shard % old).summarised
        first[shard] = NEVER if summarised is None else summarised
    return state.model_copy(update={"shards": new, "first": dict(sorted(first.items()))})
