"""Shards: which shards this worker owns, where their topics are read from, and what of them is published.

A shard is partition p of every input topic. Kafka's assignment says which are ours; the store says where to read. Who
is given the samples topic learns from it (training.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol

from aiokafka.errors import KafkaError
from faust.types import TP

from models.events import ROLES, Role
from models.instants import NEVER, format_instant
from streams import failpoints, metrics
from streams.activations import Activations
from streams.aside import Aside
from streams.commit import Range, ShardHeader
from streams.errors import FleetMismatch, KafkaUnavailable, OffsetGap, StoreUnavailable
from streams.kafka.transport import FetchedRecords, LogRange, Progress
from streams.outbox import Outbox
from streams.ports import Publisher, StateStore
from streams.processor import BatchProcessor, Clock, Shard
from streams.runner import ShardRunner
from streams.settings import Settings
from streams.training import Training

log = logging.getLogger(__name__)

#: Seconds for which Redis may be away when shards are assigned; Faust gives up on an assignment after 30.
_ASSIGN_WITHIN: Final = 20.0


class Consumer(Protocol):
    """What is asked of the batching consumer."""

    def epoch(self, tp: TP) -> int: ...
    def delivered(self, tp: TP) -> int: ...
    def progress(self, tp: TP) -> Progress | None: ...
    def on_buffer_full(self, tp: TP) -> None: ...
    def on_buffer_drop(self, tp: TP) -> None: ...
    async def seek_to(self, offsets: Mapping[TP, int]) -> None: ...
    async def log_ranges(self, tps: set[TP]) -> Mapping[TP, LogRange]: ...


class Shards:
    """The worker's shards; see Owner in streams/kafka/transport.py for the two sides Kafka sees."""

    def __init__(
        self,
        activations: Activations,
        store: StateStore,
        publisher: Publisher,
        settings: Settings,
        cluster: str = "",
    ) -> None:
        self._activations = activations
        self._store = store
        self._publisher = publisher
        self._settings = settings
        self._cluster = cluster
        self._topics: dict[Role, str] = settings.topics
        self._roles: dict[str, Role] = {topic: role for role, topic in settings.topics.items()}
        self._runners: dict[int, ShardRunner] = {}
        self._consumer: Consumer | None = None
        self._partitions = 0
        self._paused: set[TP] = set()
        self._lock = asyncio.Lock()
        self._idle_since = time.monotonic()
        self._aside = Aside(store)
        self._training = Training(store, self._reload_training, settings)

    def attach(self, consumer: Consumer, partitions: int) -> None:
        """Say who fetches, and how many partitions every input topic has."""
        self._consumer = consumer
        self._partitions = partitions

    @property
    def consumer(self) -> Consumer:
        """Who fetches."""
        assert self._consumer is not None, "attach a consumer first"  # noqa: S101
        return self._consumer

    @property
    def owned(self) -> Mapping[int, ShardRunner]:
        """The shards of this worker by number."""
        return self._runners

    def _tp(self, shard: int, role: Role) -> TP:
        return TP(self._topics[role], shard)

    async def assigned(self, partitions: Mapping[TP, LogRange]) -> Mapping[TP, int]:
        """See Owner. Raises OffsetGap, FleetMismatch, StateError, and StoreUnavailable if Redis stays away too long."""
        give_up = time.monotonic() + _ASSIGN_WITHIN
        while True:
            try:
                return await self._assigned(partitions)
            except StoreUnavailable as error:
                if time.monotonic() > give_up:
                    raise
                log.warning("%s; trying again", error, extra={"action": "retry_assignment"})
                await asyncio.sleep(0.5)

    async def _assigned(self, partitions: Mapping[TP, LogRange]) -> Mapping[TP, int]:
        async with self._lock:
            ours = {tp.partition for tp in partitions if tp.topic in self._roles}
            self._require_known(partitions)
            await self._release(set(self._runners) - ours)
            samples = {tp: log for tp, log in partitions.items() if tp.topic == self._training.tp.topic}
            positions = dict(await self._training.assigned(samples))
            for shard in sorted(ours):
                logs = {role: partitions[self._tp(shard, role)] for role in ROLES}
                offsets = await self._resume_or_load(shard, logs)
                positions.update({self._tp(shard, role): offsets[role] for role in ROLES})
            self._paused.clear()
            self._idle_since = time.monotonic()
            metrics.SHARDS.set(len(self._runners))
            return positions

    def _require_known(self, partitions: Iterable[TP]) -> None:
        """Raise FleetMismatch if an input topic has been given partitions, or has lost some."""
        grown = {tp for tp in partitions if tp.topic in self._roles and tp.partition >= self._partitions}
        if grown:
            topic = min(tp.topic for tp in grown)
            raise FleetMismatch(
                f"{topic} has more than the {self._partitions} partitions for which state is kept, and customers lie "
                "on others now. Nothing is lost: give all input topics the same number, let every worker end, and run: "
                "segmenter repartition"
            )
        given = set(partitions)
        for shard in sorted({tp.partition for tp in given if tp.topic in self._roles}):
            gone = [tp.topic for tp in (self._tp(shard, role) for role in ROLES) if tp not in given]
            if gone:
                raise FleetMismatch(
                    f"the input topics do not have {self._partitions} partitions each any more: this worker was given "
                    f"partition {shard} without that of {gone[0]}. If a topic has been given more partitions, give "
                    "all the same number, let every worker end, and run: segmenter repartition. If one was deleted, "
                    "restore it; or, to start over, run: segmenter topics create, and use another SEGMENTER_NAMESPACE "
                    "and SEGMENTER_GROUP"
                )

    async def _resume_or_load(self, shard: int, logs: Mapping[Role, LogRange]) -> Mapping[Role, int]:
        runner = self._runners.get(shard)
        if runner is not None and runner.failed() is None:
            header = await asyncio.to_thread(self._store.header, shard)
            if header.owner == runner.processor.token:
                return runner.next_offsets
        await self._release({shard})
        number = Shard(shard, self._partitions, self._topics)
        processor = BatchProcessor(number, self._activations, self._store, Clock(self._settings.clock))
        header = await self._load(processor, logs)
        outbox = Outbox(shard, self._store, self._publisher, self._aside)
        runner = ShardRunner(
            processor, outbox, self._aside, partial(self._drained, shard), self._reload, self._settings
        )
        runner.start(header)
        self._runners[shard] = runner
        return header.offsets

    async def _load(self, processor: BatchProcessor, logs: Mapping[Role, LogRange]) -> ShardHeader:
        shard = processor.shard.number
        # Claimed at the start already; but Redis may have been emptied since.
        await asyncio.to_thread(self._store.register, self._partitions, self._settings.group, self._cluster)
        stored = await asyncio.to_thread(self._store.header, shard)
        offsets: dict[Role, int] = {}
        history: dict[Role, int] = {}
        for role, kept in logs.items():
            offsets[role], history[role] = start_of(self._tp(shard, role), kept, stored.offsets.get(role))
        # What is read again because it was told to be is no loss.
        stands = {role: max(offset, stored.silence.offsets.get(role, 0)) for role, offset in offsets.items()}
        if any((kept.committed or 0) > stands[role] for role, kept in logs.items()):
            metrics.REWINDS.inc()
            log.warning("shard %d: the store is behind Kafka's commit; reading again from the store's offsets", shard)
        told_until = max(kept.told_until for kept in logs.values())
        failpoints.reached("before-load")
        header = await asyncio.to_thread(processor.load, offsets, history, told_until)
        log.info(
            "shard %d loaded: %d customers, reading from %s",
            shard,
            len(processor.table),
            dict(header.offsets),
            extra={"action": "shard_loaded", "shard": shard, "customers": len(processor.table)},
        )
        return header

    async def _reload(self, runner: ShardRunner) -> None:
        """Take a shard again after a failure, if it is still ours."""
        async with self._lock:
            shard = runner.processor.shard.number
            if self._runners.get(shard) is not runner:
                return
            ranges = await self._log_ranges({self._tp(shard, role) for role in ROLES})
            header = await self._load(runner.processor, {self._roles[tp.topic]: each for tp, each in ranges.items()})
            await runner.outbox.stop(0)
            await self.consumer.seek_to({self._tp(shard, role): header.offsets[role] for role in ROLES})
            runner.resume(header)

    async def _reload_training(self) -> None:
        """Load the learners again after a failure, if they are still ours to teach."""
        async with self._lock:
            training = self._training
            if not training.ours:
                return
            ranges = await self._log_ranges({training.tp})
            start = await training.load(ranges[training.tp])
            await self.consumer.seek_to({training.tp: start})
            training.resume(start)

    async def _log_ranges(self, tps: set[TP]) -> Mapping[TP, LogRange]:
        try:
            return await self.consumer.log_ranges(tps)
        except KafkaError as error:
            where = ", ".join(f"{tp.topic}, partition {tp.partition}" for tp in sorted(tps))
            raise KafkaUnavailable(f"Kafka did not say where {where} begins and ends: {error}") from None

    async def _release(self, shards: Iterable[int]) -> None:
        leaving = [self._runners.pop(shard) for shard in shards if shard in self._runners]
        await asyncio.gather(*(runner.stop(self._settings.stop_within / 4) for runner in leaving))
        for runner in leaving:
            metrics.forget_shard(str(runner.processor.shard.number))

    async def stop(self, within: float) -> None:
        """Finish the commits under way and publish what is committed, for at most ``within`` seconds."""
        await asyncio.gather(self._training.stop(within), *(runner.stop(within) for runner in self._runners.values()))

    def published(self) -> Mapping[TP, int]:
        """See Owner."""
        learned = self._training.offset
        return ({} if learned is None else {self._training.tp: learned}) | {
            self._tp(shard, role): offset
            for shard, runner in self._runners.items()
            for role, offset in runner.outbox.published.items()
        }

    def published_time(self, shard: int) -> int:
        """See Owner."""
        runner = self._runners.get(shard)
        return NEVER if runner is None else runner.outbox.published_time

    def lineage(self, shard: int) -> str:
        """See Owner."""
        runner = self._runners.get(shard)
        return "" if runner is None else runner.processor.lineage

    def fetched(self, batch: FetchedRecords) -> None:
        """Hand a fetch to its shard; what was fetched before the last positioning is dropped."""
        if batch.epoch != self.consumer.epoch(batch.tp):
            return
        covered, runner = Range(batch.start, batch.end), self._runners.get(batch.tp.partition)
        if batch.tp == self._training.tp:
            self._training.fetched(covered, batch.records)
        elif batch.tp.topic in self._roles and runner is not None:
            runner.fetched(self._roles[batch.tp.topic], covered, batch.records)
        if self._full(batch.tp, self._settings.buffer_size):
            self._paused.add(batch.tp)
            self.consumer.on_buffer_full(batch.tp)

    def _full(self, tp: TP, most: int) -> bool:
        """Whether more of a partition waits than should; ``most`` are the records of a shard's topic."""
        if tp == self._training.tp:
            return self._training.full
        runner = self._runners.get(tp.partition)
        return runner is not None and tp.topic in self._roles and runner.waiting(self._roles[tp.topic]) > most

    async def follow(self) -> None:
        """Called regularly: look for another policy or new cut-offs; the owner of the first shard makes those."""
        try:
            if 0 in self._runners:
                await asyncio.to_thread(self._activations.merge, self._partitions)
            await asyncio.to_thread(self._activations.refresh)
            if await asyncio.to_thread(self._store.rebuilding) is not None:
                await self._let_go()
        except StoreUnavailable as error:
            log.warning("%s; looking for other policies later", error, extra={"action": "follow"})

    async def _let_go(self) -> None:
        """Notice which shards have been taken away to be rebuilt: without a commit nothing would say so."""
        for shard, runner in list(self._runners.items()):
            if await asyncio.to_thread(self._store.owner, shard) is None and self._runners.get(shard) is runner:
                runner.rewound()

    def watch(self, joined: bool) -> None:
        """Called regularly: let paused partitions go on, report lags, and raise what ended a shard for good.

        ``joined`` says whether the worker is in its group; to have no shard is then no lack of progress.
        """
        if joined and not self._runners:
            self._idle_since = time.monotonic()
        for tp in list(self._paused):
            if not self._full(tp, self._settings.buffer_size // 2):
                self._paused.discard(tp)
                self.consumer.on_buffer_drop(tp)
        if self._training.ours:
            dimensions = self._activations.policy(self._activations.active.policy_version).clusters
            self._training.watch(self.consumer.progress(self._training.tp), dimensions)
        for shard, runner in self._runners.items():
            failure = runner.failed() or runner.outbox.failed()
            if failure is not None:
                raise failure
            runner.report()
            for role in ROLES:
                progress = self.consumer.progress(self._tp(shard, role))
                if progress is not None:
                    behind = max(0, progress.end - runner.next_offsets[role]) + runner.waiting(role)
                    metrics.CONSUMER_LAG.labels(self._topics[role], str(shard)).set(behind)

    def _drained(self, shard: int, role: Role, delivered: int) -> float | None:
        """See Drained in streams/runner.py."""
        tp = self._tp(shard, role)
        progress = self.consumer.progress(tp)
        if progress is None or progress.position < progress.end or delivered < self.consumer.delivered(tp):
            return None
        return progress.polled_at

    def overview(self) -> list[dict[str, Any]]:
        """What this worker owns, for people: where each shard stands, in the log and in time."""
        return [self._overview(shard, runner) for shard, runner in sorted(self._runners.items())]

    def _overview(self, shard: int, runner: ShardRunner) -> dict[str, Any]:
        processor, outbox = runner.processor, runner.outbox
        progress = {role: self.consumer.progress(self._tp(shard, role)) for role in ROLES}
        return {
            "shard": shard,
            "customers": len(processor.table),
            "time": None if processor.time == NEVER else format_instant(processor.time),
            "policy_version": processor.policy.version,
            "activation": processor.activation,
            "offsets": dict(runner.next_offsets),
            "waiting": {role: runner.waiting(role) for role in ROLES},
            "end": {role: None if known is None else known.end for role, known in progress.items()},
            "published": dict(outbox.published),
            "outbox": outbox.pending,
        }

    def last_progress(self) -> float:
        """When the slowest shard last made progress or had nothing to do (monotonic seconds)."""
        return min((runner.last_progress for runner in self._runners.values()), default=self._idle_since)


def start_of(tp: TP, log: LogRange, stored: int | None) -> tuple[int, int]:
    """Where a partition is to be read from, and the offset below which its records are history.

    Raises OffsetGap if Kafka no longer holds what must be read and there was a stored or committed offset.
    """
    where = f"{tp.topic}, partition {tp.partition}"
    if stored is None and log.lineage:
        raise OffsetGap(
            f"{where}: Redis holds no state, and what it was made of lies on other partitions, too: there were "
            f"{log.lineage} before. Restore Redis from a backup made after the repartition; or put all events onto new "
            "topics, and use another SEGMENTER_NAMESPACE and SEGMENTER_GROUP"
        )
    if stored is None:
        if log.committed is None:
            return log.first, log.end
        if log.first > 0:
            raise OffsetGap(
                f"{where}: Redis holds no state, the group had committed offset {log.committed}, and Kafka has deleted "
                f"everything below {log.first}. Restore Redis from a backup; or, to rebuild from what Kafka still has, "
                "delete the group's committed offsets and start again"
            )
        return 0, log.committed
    if stored < log.first:
        raise OffsetGap(
            f"{where}: Redis stands at offset {stored}, and Kafka has deleted everything below {log.first}. "
            "Restore a newer backup of Redis; or, to rebuild from what Kafka still has, use another "
            "SEGMENTER_NAMESPACE and SEGMENTER_GROUP"
        )
    if stored > log.end:
        raise OffsetGap(
            f"{where}: Redis stands at offset {stored}, and the log ends at {log.end}: the topic was recreated or "
            "truncated. Restore the topic; or, to start over, use another SEGMENTER_NAMESPACE and SEGMENTER_GROUP"
        )
    return stored, log.committed or 0
