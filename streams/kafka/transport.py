"""The batching transport: Faust's own consumer, handing an agent one message per fetched list of records.

Faust costs about 70 µs for every message it passes on; a list of records costs the same once. Agents, assignment,
rebalancing, flow control and shutdown stay Faust's. Three things differ, all because the store's offsets are the
truth and Faust's acknowledgements mean nothing here:

- after an assignment the consumer is positioned where the store says, not where Kafka's commit is;
- what is committed to Kafka is the offset below which every change has been published;
- a topic's partition is given to a worker together with the same partition of the others (range assignor).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, cast

import aiokafka
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalStateError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from models.batch import Record
from models.errors import SegmenterError
from models.instants import NEVER
from streams import failpoints
from streams.clock import CLOCK
from streams.errors import ConfigurationError, OffsetGap, ServiceUnavailable, StaleOwner
from streams.kafka.assignor import CopartitionedAssignor
from streams.kafka.commits import Told
from streams.kafka.records import leave_records_plain

#: How long the broker may hold a fetch that finds nothing: it bounds how stale "read to its end" may be.
FETCH_WAIT_MS: Final = 100
#: The most that one fetch brings of one partition: some 8,000 purchases. While they are worked on the next are fetched,
#: and of half as many each costs a third more.
FETCH_BYTES: Final = 2 * 1024 * 1024
#: With so many records a fetch, the next one is under way while these are worked on.
_FEW: Final = 500
#: What joining the group again does not mend.
_LASTING: Final = (
    GroupAuthorizationFailedError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    TopicAuthorizationFailedError,
)


@dataclass(frozen=True, slots=True)
class FetchedRecords:
    """One fetch of one partition. It covers [start, end), control records and compacted gaps included.

    ``epoch`` counts the times the partition was positioned, so that what was fetched before is told apart.
    """

    tp: TP
    start: int
    end: int
    records: Sequence[Record]
    epoch: int


class Progress(NamedTuple):
    """Where a partition's consumer is: next offset to read, the log's end as of ``polled_at`` (Unix seconds)."""

    position: int
    end: int
    polled_at: float


class LogRange(NamedTuple):
    """What Kafka holds and knows of one partition: first offset, end, and the group's commit, if any.

    ``told_until`` is the instant before which every deadline had been published when that commit was made. ``lineage``
    is not empty if the state was then made of other partitions' records, too.
    """

    first: int
    end: int
    committed: int | None
    told_until: int = NEVER
    lineage: str = ""


class Owner(Protocol):
    """Who decides where partitions are read from and what of them may be committed."""

    async def assigned(self, partitions: Mapping[TP, LogRange]) -> Mapping[TP, int]:
        """Take exactly these partitions. Returns where each is to be read from."""
        ...

    def published(self) -> Mapping[TP, int]:
        """For each partition, the offset below which every change has been acknowledged by the broker."""
        ...

    def published_time(self, shard: int) -> int:
        """The instant (microseconds) before which every deadline of the shard has been published."""
        ...

    def lineage(self, shard: int) -> str:
        """See LogRange."""
        ...


class BatchConsumerThread(driver.AIOKafkaConsumerThread):
    """Runs the aiokafka consumer in a thread of its own, as Faust's does."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        leave_records_plain()
        self._assignor = CopartitionedAssignor
        auth = driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context)
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[CopartitionedAssignor],
            enable_auto_commit=False,
            auto_offset_reset="none",
            # An aborted purchase is no purchase.
            isolation_level="read_committed",
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 300) * 1000),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            **auth,
        )

    async def log_ranges(self, tps: set[TP]) -> dict[TP, LogRange]:
        """What Kafka holds of each partition."""
        return cast(dict[TP, LogRange], await self.call_thread(self._log_ranges, tps))

    async def _log_ranges(self, tps: set[TP]) -> dict[TP, LogRange]:
        consumer = self._ensure_consumer()
        keys = [TopicPartition(tp.topic, tp.partition) for tp in tps]
        first = await consumer.beginning_offsets(keys)
        end = await consumer.end_offsets(keys)
        commits = await consumer._coordinator.fetch_committed_offsets(keys)
        ranges = {}
        for key in keys:
            commit = commits.get(key)
            known = commit is not None and commit.offset >= 0
            told = Told.parse(commit.metadata if known else None)
            ranges[TP(key.topic, key.partition)] = LogRange(
                first[key], end[key], commit.offset if known else None, *told
            )
        return ranges

    async def _fetch_records(
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - Faust's signature
        max_records: int | None = None,
    ) -> dict[TP, FetchedRecords]:
        """Each partition's records with the range they cover, which only this thread can tell reliably.

        After a few records the next are asked for when these are being dealt with, not before: an answer that came
        at once would only grow old.
        """
        consumer.resume(*consumer.paused())
        found = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        if 0 < sum(map(len, found.values())) < _FEW:
            consumer.pause(*consumer.assignment())
        assignment = consumer._subscription.subscription.assignment
        batches = {}
        for key, records in found.items():
            tp = TP(key.topic, key.partition)
            epoch, start = self.consumer.read_from.get(tp, (0, records[0].offset))
            end = assignment.state_value(key).position
            self.consumer.read_from[tp] = (epoch, end)
            batches[tp] = FetchedRecords(tp, start, end, records, epoch)
        return batches

    async def seek_to(self, offsets: Mapping[TP, int], epochs: Mapping[TP, int]) -> None:
        """Position partitions, dropping what had been fetched of them; done in the consumer's own thread."""
        await self.call_thread(self._seek_to, offsets, epochs)

    async def _seek_to(self, offsets: Mapping[TP, int], epochs: Mapping[TP, int]) -> None:
        consumer = self._ensure_consumer()
        for tp, offset in offsets.items():
            self.consumer.read_from[tp] = (epochs[tp], offset)
            consumer.seek(TopicPartition(tp.topic, tp.partition), offset)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit to Kafka. A failure is not fatal: the commit only tells others how far we are.

        Not while the group is being joined: the commit would be refused as of an old generation, and aiokafka would
        leave the group over it and join once more.
        """
        if self._ensure_consumer()._coordinator._performed_join_prepare:
            return False
        try:
            await self._ensure_consumer().commit(
                {TopicPartition(tp.topic, tp.partition): self._commit_of(tp, at) for tp, at in offsets.items()}
            )
        except (KafkaError, RuntimeError) as error:
            self.log.warning("Kafka did not take the commit, it will be tried again: %s", error)
            return False
        return True

    def _commit_of(self, tp: TP, offset: int) -> OffsetAndMetadata:
        """An offset to commit, with the time until which deadlines have been told: they are no records."""
        told = Told(self.consumer.told_until.get(tp, NEVER), self.consumer.owner.lineage(tp.partition))
        return OffsetAndMetadata(offset, told.text())

    async def check(self) -> None:
        """Let the group's coordination go on after an error. Raises KafkaError if it cannot.

        aiokafka's coordination stops at an error until its user has heard of it, which Faust never does: the worker
        would wait for an assignment for ever.
        """
        if self._consumer is not None:
            await self.call_thread(self._check)

    async def _check(self) -> None:
        coordinator = self._ensure_consumer()._coordinator
        gone_for_good = coordinator._coordination_task.done()
        try:
            coordinator.check_errors()
        except KafkaError as error:
            if gone_for_good or isinstance(error, _LASTING):
                raise
            self.log.warning("the consumer group had an error and joins again: %s", error)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Replaced by the watchdog, which ends a worker that stalls instead of logging that it did."""


class BatchConsumer(driver.Consumer):
    """Yields one message per partition and fetch, whose value is FetchedRecords."""

    _thread: BatchConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: partition → (epoch, next offset): where the next fetch starts.
        self.read_from: dict[TP, tuple[int, int]] = {}
        self._epoch = 0
        #: partition → what has been committed to Kafka: the offset, and the time until which deadlines were told.
        self._kafka_commit: dict[TP, tuple[int, int]] = {}
        #: partition → the time that goes with the offset that is about to be committed.
        self.told_until: dict[TP, int] = {}

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def owner(self) -> Owner:
        """Who decides about partitions."""
        return cast(Owner, self.app.shards)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109
        """Fetch once and yield a message per partition.

        What arrives while a rebalance has stopped the flow is dropped: the assignment that follows positions anew.
        """
        try:
            fetched, _ = await self._wait_next_records(timeout)
        except OffsetOutOfRangeError as error:
            self.app.fail(
                OffsetGap(
                    f"Kafka no longer holds the records that come next ({error}): its retention is shorter than this "
                    "worker's delay. Start the worker again, which says what can be done"
                )
            )
            return
        except NoOffsetForPartitionError:
            # A partition that is assigned and not positioned yet.
            return
        generation = self.app.consumer_generation_id
        for tp, batch in (fetched or {}).items():
            if self.should_stop or not self.flow_active or self.app.consumer_generation_id != generation:
                return
            yield tp, self._message(batch, generation)

    def _message(self, batch: FetchedRecords, generation: int) -> ConsumerMessage:
        last = batch.records[-1]
        return ConsumerMessage(
            batch.tp.topic, batch.tp.partition, batch.start, last.timestamp / 1000, 0, None, None, batch, None,
            tp=batch.tp, generation_id=generation,
        )  # fmt: skip

    async def perform_seek(self) -> None:
        """Position every assigned partition where the store says."""
        assignment = self.assignment()
        self._kafka_commit.clear()
        try:
            ranges = await self._thread.log_ranges(assignment)
            offsets = await self.owner.assigned(ranges)
        except SegmenterError as error:
            self.app.fail(error)
            return
        except KafkaError as error:
            self.app.fail(ServiceUnavailable(f"Kafka did not say where the assigned partitions begin and end: {error}"))
            return
        self._kafka_commit.update({tp: (log.committed or 0, log.told_until) for tp, log in ranges.items()})
        try:
            await self.seek_to(offsets)
        except StaleOwner as error:
            self.log.info("%s", error)

    async def seek_to(self, offsets: Mapping[TP, int]) -> None:
        """Position partitions; what was fetched before belongs to an earlier epoch.

        Raises StaleOwner if one of them is not assigned any more.
        """
        self._epoch += 1
        try:
            await self._thread.seek_to(offsets, dict.fromkeys(offsets, self._epoch))
        except IllegalStateError as error:
            raise StaleOwner(f"{error}; waiting for the next assignment") from None
        for tp in offsets:
            self._read_offset[tp] = None

    def epoch(self, tp: TP) -> int:
        """The epoch of the partition's last positioning."""
        return self.read_from.get(tp, (0, 0))[0]

    async def check(self) -> None:
        """Let the group's coordination go on after an error. Raises ServiceUnavailable if it cannot."""
        try:
            await self._thread.check()
        except InvalidSessionTimeoutError:
            raise ConfigurationError(
                "Kafka refuses SEGMENTER_SESSION_TIMEOUT; it must lie between group.min.session.timeout.ms and "
                "group.max.session.timeout.ms of the broker"
            ) from None
        except KafkaError as error:
            raise ServiceUnavailable(f"Kafka does not let this worker into its group: {error}") from None

    def delivered(self, tp: TP) -> int:
        """The end of what has been fetched and handed on, since the last positioning."""
        return self.read_from.get(tp, (0, 0))[1]

    async def log_ranges(self, tps: set[TP]) -> dict[TP, LogRange]:
        """What Kafka holds of each partition. Raises StaleOwner if they are not all assigned, or KafkaError."""
        if not tps <= self.assignment():
            raise StaleOwner("the shard's partitions are being reassigned")
        return await self._thread.log_ranges(tps)

    def progress(self, tp: TP) -> Progress | None:
        """Where the partition's consumer is; None while it is not known."""
        assignment = self._thread._ensure_consumer()._subscription.subscription.assignment
        state = assignment and assignment.state_value(TopicPartition(tp.topic, tp.partition))
        if not state or not state.has_valid_position or state.lso is None or state.timestamp is None:
            return None
        return Progress(state.position, state.lso, CLOCK.noted(state.timestamp / 1000))

    def _filter_committable_offsets(self, tps: Any) -> dict[TP, int]:
        """What is published and not yet committed to Kafka; Faust's acknowledgements are forgotten."""
        self._acked.clear()
        self._acked_index.clear()
        self._unacked_messages.clear()
        due = {}
        for tp, offset in self.owner.published().items():
            committed, told_until = self._kafka_commit.get(tp, (0, NEVER))
            self.told_until[tp] = self.owner.published_time(tp.partition)
            if offset > committed or (offset == committed and self.told_until[tp] > told_until):
                due[tp] = offset
        return due

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        failpoints.reached("before-offsets")
        committed = await super()._commit(offsets)
        if committed:
            self._kafka_commit.update({tp: (at, self.told_until.get(tp, NEVER)) for tp, at in offsets.items()})
        return bool(committed)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Ranges have no gaps."""


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with the batching consumer."""

    Consumer = BatchConsumer
