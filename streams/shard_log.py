"""One shard's input topics, read again without a group and folded as a worker folds them, up to exactly given offsets.

For the audit (verify.py) and for whoever must bring a shard to an exact place while no worker has it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from models.batch import Record, Refusal
from models.events import ROLES, Role
from models.instants import FOREVER, NEVER
from streams.commit import Range, ShardHeader
from streams.errors import ConfigurationError, OffsetGap, ServiceUnavailable
from streams.inbox import Batch, Beyond, Inbox
from streams.processor import BatchProcessor, Step

#: Records asked of Kafka at once.
_AT_ONCE: Final = 5_000
#: Kilobytes that a reader keeps ready.
_AHEAD: Final = 16_384
_AHEAD_REASON: Final = "the record's timestamp is in the future; correct the broker's clock"


class LogRecord(NamedTuple):
    """A record as it lies in Kafka; see models.batch.Record."""

    offset: int
    timestamp: int
    timestamp_type: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Reader(Protocol):
    """Reads one partition in order. ``position`` is the offset up to which it has handed out everything."""

    position: int

    def take(self, end: int) -> Sequence[Record]:
        """The next records below ``end``; none only if there are no more of them."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


class Log(Protocol):
    """The topics of one Kafka."""

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises ConfigurationError if it does not exist."""
        ...

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset that is kept, and the end."""
        ...

    def read(self, topic: str, partition: int, start: int) -> Reader:
        """A reader that begins at an offset."""
        ...


class KafkaLog:
    """See Log. ``options`` are librdkafka's, as all clients of this fleet connect; ``within`` seconds Kafka answers.

    Every method raises ServiceUnavailable if Kafka does not.
    """

    def __init__(self, options: Mapping[str, Any], servers: str, within: float) -> None:
        self._options = {
            **options,
            "group.id": "segmenter-reader",  # required, and never joined
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": _AHEAD,
            "fetch.queue.backoff.ms": 5,
            "log_level": 0,
        }
        self._servers = servers
        self._within = within
        self._asking: Any = None

    def _client(self) -> Any:
        from confluent_kafka import Consumer

        self._asking = self._asking or Consumer(self._options)
        return self._asking

    def close(self) -> None:
        """Give the connection back; readers have their own."""
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    def partitions(self, topic: str) -> int:
        """See Log."""
        from confluent_kafka import KafkaException

        try:
            found = self._client().list_topics(topic, timeout=self._within).topics[topic]
        except KafkaException as error:
            raise self._unavailable(error.args[0].str()) from None
        if found.error is not None or not found.partitions:
            raise ConfigurationError(f"Kafka at {self._servers} has no topic {topic}; run: segmenter topics create")
        return len(found.partitions)

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See Log."""
        from confluent_kafka import KafkaException, TopicPartition

        try:
            first, end = self._client().get_watermark_offsets(TopicPartition(topic, partition), timeout=self._within)
        except KafkaException as error:
            raise self._unavailable(error.args[0].str()) from None
        return int(first), int(end)

    def read(self, topic: str, partition: int, start: int) -> KafkaReader:
        """See Log."""
        return KafkaReader(self._options, self._servers, self._within, topic, partition, start)

    def _unavailable(self, why: str) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"Kafka at {self._servers} did not answer within {self._within:g} s ({why}); check SEGMENTER_BROKER and "
            "that the broker is running"
        )


class KafkaReader:
    """See Reader. Raises ServiceUnavailable, and OffsetGap if what must be read is not there (any more)."""

    def __init__(
        self, options: Mapping[str, Any], servers: str, within: float, topic: str, partition: int, start: int
    ) -> None:
        from confluent_kafka import Consumer, TopicPartition

        self.position = start
        self._servers, self._within = servers, within
        self._where = f"{topic}, partition {partition}"
        self._waiting: deque[LogRecord] = deque()
        self._consumer = Consumer(dict(options))
        self._consumer.assign([TopicPartition(topic, partition, start)])
        self._end_seen = -1

    def close(self) -> None:
        """See Reader."""
        self._consumer.close()

    def take(self, end: int) -> Sequence[Record]:
        """See Reader."""
        deadline = time.monotonic() + self._within
        while self.position < end:
            if not self._waiting and self._end_seen < end:
                self._poll(end, deadline)
            taken = []
            while self._waiting and self._waiting[0].offset < end:
                taken.append(self._waiting.popleft())
            if taken:
                self.position = taken[-1].offset + 1
                return taken
            if self._waiting or self._end_seen >= end:
                # What is left below the end are control records, or were removed by compaction.
                self.position = end
        return []

    def _poll(self, end: int, deadline: float) -> None:
        for message in self._consumer.consume(_AT_ONCE, timeout=0.05):
            error = message.error()
            if error is None:
                kind, timestamp = message.timestamp()
                # confluent's types count from 1, Kafka's from 0: 1 is the broker's.
                self._waiting.append(
                    LogRecord(
                        message.offset() or 0, timestamp, kind - 1, _raw(message.key()), _raw(message.value()),
                        tuple((name, _raw(value)) for name, value in message.headers() or ()),
                    )
                )  # fmt: skip
            elif error.name() == "_PARTITION_EOF":
                self._end_seen = message.offset() or 0
                if self._end_seen < end:
                    self._require_end(end)
            elif error.name() in ("_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"):
                raise OffsetGap(f"{self._where}: Kafka no longer holds offset {self.position}")
            elif error.fatal() or not error.retriable():
                raise ServiceUnavailable(f"Kafka at {self._servers}: {self._where}: {error.str()}")
        if not self._waiting and self._end_seen < end and time.monotonic() > deadline:
            raise ServiceUnavailable(
                f"Kafka at {self._servers} did not answer within {self._within:g} s about {self._where}; check that "
                "the broker is running"
            )

    def _require_end(self, end: int) -> None:
        """The log ends before ``end``: it may just be open transactions, so the broker is asked."""
        from confluent_kafka import KafkaException, TopicPartition

        topic, _, partition = self._where.rpartition(", partition ")
        try:
            _, known = self._consumer.get_watermark_offsets(TopicPartition(topic, int(partition)), timeout=self._within)
        except KafkaException:
            return
        if known < end:
            raise OffsetGap(
                f"{self._where}: the log ends at {known}, before offset {end}: the topic was recreated or truncated"
            )


def _raw(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


class Upcoming(Protocol):
    """Activations that a shard must not see before its time passes an instant."""

    @property
    def instant(self) -> int:
        """What is next is seen once time has reached this instant and before it passes it; FOREVER if nothing is."""
        ...

    def reveal(self) -> None:
        """Let the next one be seen."""
        ...


class _Nothing:
    instant = FOREVER

    def reveal(self) -> None:
        raise AssertionError


def _no_step(step: Step, batch: Batch | None) -> None:
    pass


class Folder:
    """Folds a shard's topics through a processor that has been loaded, and commits to the processor's store.

    ``taken`` gets every step after its commit, with the records that it folded, if any. ``awaiting`` is called when
    cut-offs are not there that a shard waits for; by default it goes on without, as a worker does in the end.
    ``ahead`` are records that a worker refused because of its wall clock, as nobody can find out again. ``latest``
    says what the last instant is that a record's own timestamp may bear. Time moves at most ``most`` customers in one
    commit.
    """

    def __init__(
        self,
        processor: BatchProcessor,
        header: ShardHeader,
        log: Log,
        *,
        taken: Callable[[Step, Batch | None], None] = _no_step,
        upcoming: Upcoming | None = None,
        awaiting: Callable[[], None] | None = None,
        ahead: Collection[tuple[Role, int]] = (),
        latest: Callable[[], int] = lambda: FOREVER,
        batch_size: int = 5_000,
        most: int | None = None,
    ) -> None:
        self.processor: Final = processor
        self._log = log
        self._taken = taken
        self._upcoming: Upcoming = upcoming or _Nothing()
        self._awaiting = awaiting or processor.give_up
        self._ahead = ahead
        self._latest = latest
        self._batch_size = batch_size
        self._most = most
        self._inbox = Inbox(processor.clock)
        self._readers: dict[Role, Reader] = {}
        self._next: dict[Role, int] = {}
        self._open(header)

    def close(self) -> None:
        """Stop reading."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _open(self, header: ShardHeader) -> None:
        self.close()
        self._inbox.clear()
        self._next = dict(header.offsets)

    def fold_to(self, ends: Mapping[Role, int]) -> None:
        """Fold everything below the offsets ``ends`` that has not been folded, and nothing else."""
        while True:
            self.follow()
            undrained = {role for role in ROLES if self._next[role] < ends.get(role, 0)}
            until = min(self.processor.stop_at, self._upcoming.instant + 1)
            found = self._inbox.take(self._batch_size, undrained, until=until)
            if isinstance(found, Beyond):
                self._stop(found.instant)
            elif found is not None:
                self._commit(self.processor.fold(found.events, found.refusals, found.ranges, self._most), found)
            elif undrained:
                self._fetch(min(undrained, key=lambda role: (self._inbox.size(role), ROLES.index(role))), ends)
            else:
                return

    def pass_to(self, instant: int) -> None:
        """Let time pass to ``instant``, with all its stops, and apply everything that is due before it."""
        if instant == NEVER:
            return
        while min(self.processor.stop_at, self._upcoming.instant + 1) <= instant:
            self._stop(instant)
        self._advance(instant)
        self.follow()

    def _fetch(self, role: Role, ends: Mapping[Role, int]) -> None:
        shard = self.processor.shard
        reader = self._readers.get(role)
        if reader is None:
            reader = self._readers[role] = self._log.read(shard.topics[role], shard.number, self._next[role])
        records = reader.take(ends[role])
        refused: list[Refusal] = []
        if self._ahead:
            refused = [
                Refusal(role, record, "recorded_ahead", _AHEAD_REASON)
                for record in records
                if (role, record.offset) in self._ahead
            ]
            records = [record for record in records if (role, record.offset) not in self._ahead]
        events, refusals = self.processor.read(role, records, self._latest())
        refusals = sorted([*refusals, *refused], key=lambda refusal: refusal.record.offset)
        self._inbox.put(role, Range(self._next[role], reader.position), events, refusals)
        self._next[role] = reader.position

    def _stop(self, target: int) -> None:
        """Do what must be done before time may pass on to ``target``."""
        if self._upcoming.instant < self.processor.stop_at:
            self._advance(self._upcoming.instant)
            self._upcoming.reveal()
            self.follow()
            return
        step = self.processor.stop(target, self._most)
        if step is None:
            self._awaiting()
        else:
            self._commit(step, None)

    def follow(self) -> None:
        """Take what is in force now, as a worker does between two batches."""
        self._advance(self.processor.time)
        while (step := self.processor.follow()) is not None:
            self._commit(step, None)
            if step.reload:
                self._open(self.processor.load({}, {}))
            self._advance(self.processor.time)

    def _advance(self, instant: int) -> None:
        while instant != NEVER and (step := self.processor.advance(instant, self._most)) is not None:
            self._commit(step, None)

    def _commit(self, step: Step, batch: Batch | None) -> None:
        self.processor.commit(step)
        self._taken(step, batch)
