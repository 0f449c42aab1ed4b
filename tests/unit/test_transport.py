"""The batching transport, as far as it can be tested without a broker: what is handed on, positioned, committed."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.structs import OffsetAndMetadata
from faust.types import TP
from yarl import URL

from models.errors import StateError
from models.instants import NEVER
from streams.errors import ConfigurationError, OffsetGap, ServiceUnavailable, StaleOwner, StoreUnavailable
from streams.kafka.assignor import CopartitionedAssignor
from streams.kafka.transport import (
    BatchConsumer,
    BatchConsumerThread,
    FetchedRecords,
    LogRange,
    Progress,
)
from tests.unit.build import Rec

P0, P1, S0 = TP("purchases", 0), TP("purchases", 1), TP("signups", 0)


def key(tp: TP) -> TopicPartition:
    return TopicPartition(tp.topic, tp.partition)


class FakeThread:
    """What the consumer asks its thread for."""

    def __init__(self) -> None:
        self.assigned = {P0, S0}
        self.ranges: dict[TP, LogRange] = {P0: LogRange(0, 50, 30), S0: LogRange(0, 9, None)}
        self.error: Exception | None = None
        self.seek_error: Exception | None = None
        self.sought: list[tuple[dict[TP, int], dict[TP, int]]] = []
        self.consumer: Any = None
        self.states: dict[TopicPartition, Any] = {}

    def assignment(self) -> set[TP]:
        return self.assigned

    async def log_ranges(self, tps: set[TP]) -> dict[TP, LogRange]:
        if self.error is not None:
            raise self.error
        return {tp: self.ranges[tp] for tp in tps}

    async def seek_to(self, offsets: Mapping[TP, int], epochs: Mapping[TP, int]) -> None:
        if self.seek_error is not None:
            raise self.seek_error
        self.sought.append((dict(offsets), dict(epochs)))
        for tp, offset in offsets.items():
            self.consumer.read_from[tp] = (epochs[tp], offset)

    async def check(self) -> None:
        if self.error is not None:
            raise self.error

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        self.committed = dict(offsets)
        return self.error is None

    def _ensure_consumer(self) -> Any:
        assignment = SimpleNamespace(state_value=self.states.get) if self.states is not None else None
        return SimpleNamespace(_subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment)))


class FakeApp:
    """What the consumer asks the application for; ``shards`` is the owner."""

    def __init__(self) -> None:
        self.shards = self
        self.consumer_generation_id = 1
        self.failures: list[BaseException] = []
        self.positions: dict[TP, int] = {P0: 40, S0: 9}
        self.error: Exception | None = None
        self.given: list[Mapping[TP, LogRange]] = []
        self.acknowledged: dict[TP, int] = {}
        self.time = NEVER
        self.before = ""

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)

    async def assigned(self, partitions: Mapping[TP, LogRange]) -> Mapping[TP, int]:
        self.given.append(partitions)
        if self.error is not None:
            raise self.error
        return self.positions

    def published(self) -> Mapping[TP, int]:
        return self.acknowledged

    def published_time(self, shard: int) -> int:
        assert shard == 0
        return self.time

    def lineage(self, shard: int) -> str:
        return self.before


class Consumer(BatchConsumer):
    """The batching consumer without what Faust builds around it."""

    should_stop = False
    log = SimpleNamespace(info=lambda *_: None)

    def __init__(self) -> None:
        self.app = FakeApp()
        self._thread = FakeThread()  # type: ignore[assignment]
        self._thread.consumer = self
        self.read_from = {}
        self._epoch = 0
        self._kafka_commit = {}
        self.told_until = {}
        self._read_offset = {}
        self._acked, self._acked_index, self._unacked_messages = {P0: [1]}, {P0: {1}}, {"m"}
        self.flow_active = True
        self.found: Any = {}

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109
        if isinstance(self.found, Exception):
            raise self.found
        return self.found, set(self.found or {})

    def take(self, stop_after: int | None = None) -> list[Any]:
        """One round of getmany."""

        async def whole() -> list[Any]:
            messages = []
            async for tp, message in self.getmany(1.0):
                messages.append((tp, message))
                if stop_after is not None and len(messages) == stop_after:
                    self.flow_active = False
            return messages

        return asyncio.run(whole())

    @property
    def thread(self) -> FakeThread:
        thread: Any = self._thread
        return thread


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


def fetch(tp: TP, start: int, *timestamps: int, epoch: int = 1) -> FetchedRecords:
    records = [Rec(b"", None, start + i, timestamp) for i, timestamp in enumerate(timestamps)]
    return FetchedRecords(tp, start, start + len(records) + 2, records, epoch)


# Fetching


def test_a_fetch_is_one_message(consumer: Consumer) -> None:
    """Each fetched partition is one message, whose value is the whole fetch, undecoded."""
    first, second = fetch(P0, 5, 1000, 2500), fetch(S0, 0, 7000)
    consumer.found = {P0: first, S0: second}
    messages = consumer.take()
    assert [tp for tp, _ in messages] == [P0, S0]
    assert [message.value for _, message in messages] == [first, second]
    message = messages[0][1]
    assert (message.topic, message.partition, message.offset, message.tp) == ("purchases", 0, 5, P0)
    assert message.timestamp == 2.5
    assert message.key is None
    assert message.generation_id == 1


@pytest.mark.parametrize("found", [None, {}])
def test_an_empty_fetch_is_nothing(consumer: Consumer, found: Any) -> None:
    """No message, no error."""
    consumer.found = found
    assert consumer.take() == []
    assert consumer.app.failures == []


def test_what_arrives_while_the_flow_is_stopped_is_dropped(consumer: Consumer) -> None:
    """The assignment that follows a rebalance positions anew, so nothing is lost."""
    consumer.found = {P0: fetch(P0, 0, 1), S0: fetch(S0, 0, 1)}
    assert len(consumer.take(stop_after=1)) == 1
    assert consumer.take() == []


def test_what_was_fetched_before_a_rebalance_is_dropped(consumer: Consumer) -> None:
    """The generation must be the same when the message is handed on."""
    consumer.found = {P0: fetch(P0, 0, 1), S0: fetch(S0, 0, 1)}

    async def whole() -> list[TP]:
        found = []
        async for tp, _ in consumer.getmany(1.0):
            found.append(tp)
            consumer.app.consumer_generation_id += 1
        return found

    assert asyncio.run(whole()) == [P0]


def test_nothing_is_handed_on_while_stopping(consumer: Consumer) -> None:
    """A consumer that is told to stop drops what it has."""
    consumer.found = {P0: fetch(P0, 0, 1)}
    consumer.should_stop = True
    assert consumer.take() == []


def test_an_offset_out_of_range_ends_the_worker(consumer: Consumer) -> None:
    """Retention that overtook the worker must not pass silently."""
    consumer.found = OffsetOutOfRangeError({key(P0): 5})
    assert consumer.take() == []
    (error,) = consumer.app.failures
    assert isinstance(error, OffsetGap)
    assert "Kafka no longer holds the records that come next" in str(error)
    assert "Start the worker again, which says what can be done" in str(error)


def test_a_partition_that_is_not_positioned_yet_is_waited_for(consumer: Consumer) -> None:
    """Between assignment and positioning there is no offset; that is no error."""
    consumer.found = NoOffsetForPartitionError(key(P0))
    assert consumer.take() == []
    assert consumer.app.failures == []


# Positioning


def test_partitions_are_positioned_where_the_owner_says(consumer: Consumer) -> None:
    """The owner is told what Kafka holds of exactly the assigned partitions; Kafka's commit decides nothing."""
    asyncio.run(consumer.perform_seek())
    assert consumer.app.given == [{P0: LogRange(0, 50, 30), S0: LogRange(0, 9, None)}]
    assert consumer.thread.sought == [({P0: 40, S0: 9}, {P0: 1, S0: 1})]
    assert consumer.delivered(P0) == 40
    assert consumer.app.failures == []


def test_every_positioning_begins_an_epoch(consumer: Consumer) -> None:
    """For the partitions that it concerns; others keep theirs."""
    assert (consumer.epoch(P0), consumer.delivered(P0)) == (0, 0)
    asyncio.run(consumer.perform_seek())
    asyncio.run(consumer.seek_to({P0: 7}))
    assert (consumer.epoch(P0), consumer.delivered(P0)) == (2, 7)
    assert (consumer.epoch(S0), consumer.delivered(S0)) == (1, 9)
    asyncio.run(consumer.seek_to({S0: 1}))
    assert consumer.epoch(S0) == 3


@pytest.mark.parametrize(
    "error", [OffsetGap("a gap"), StateError("newer"), StoreUnavailable("away"), ServiceUnavailable("away")]
)
def test_an_owner_that_cannot_take_the_partitions_ends_the_worker(consumer: Consumer, error: Exception) -> None:
    """With the owner's own sentence, and nothing is positioned."""
    consumer.app.error = error
    asyncio.run(consumer.perform_seek())
    assert consumer.app.failures == [error]
    assert consumer.thread.sought == []


def test_kafka_that_does_not_answer_at_an_assignment_ends_the_worker(consumer: Consumer) -> None:
    """A fresh worker tries again."""
    consumer.thread.error = KafkaConnectionError("no route")
    asyncio.run(consumer.perform_seek())
    (error,) = consumer.app.failures
    assert isinstance(error, ServiceUnavailable)
    assert "Kafka did not say where the assigned partitions begin and end" in str(error)


def test_a_partition_that_left_cannot_be_positioned(consumer: Consumer) -> None:
    """StaleOwner: the shard waits for the assignment that explains it."""
    consumer.thread.seek_error = IllegalStateError("No current assignment for partition")
    with pytest.raises(StaleOwner, match="waiting for the next assignment"):
        asyncio.run(consumer.seek_to({P0: 1}))


def test_a_rebalance_in_the_middle_of_a_positioning_is_no_failure(consumer: Consumer) -> None:
    """The assignment that follows positions anew."""
    consumer.thread.seek_error = IllegalStateError("No current assignment for partition")
    asyncio.run(consumer.perform_seek())
    assert consumer.app.failures == []
    assert consumer.thread.sought == []


def test_what_kafka_holds_is_asked_only_of_assigned_partitions(consumer: Consumer) -> None:
    """During a rebalance the answer would be somebody else's."""
    assert asyncio.run(consumer.log_ranges({P0})) == {P0: LogRange(0, 50, 30)}
    with pytest.raises(StaleOwner, match="being reassigned"):
        asyncio.run(consumer.log_ranges({P0, P1}))


# Committing


def test_what_is_committed_is_what_is_published(consumer: Consumer) -> None:
    """Faust's acknowledgements are forgotten; an offset is committed to Kafka once."""
    asyncio.run(consumer.perform_seek())
    consumer.app.acknowledged = {P0: 30, S0: 0}
    assert consumer._filter_committable_offsets({P0, S0}) == {}
    assert (consumer._acked, consumer._acked_index, consumer._unacked_messages) == ({}, {}, set())
    consumer.app.acknowledged = {P0: 35, S0: 4}
    assert consumer._filter_committable_offsets(set()) == {P0: 35, S0: 4}
    assert asyncio.run(consumer._commit({P0: 35}))
    assert consumer._filter_committable_offsets(set()) == {S0: 4}


def test_a_commit_that_fails_is_tried_again(consumer: Consumer) -> None:
    """It counts only once Kafka has taken it."""
    consumer.app.acknowledged = {P0: 35}
    consumer.thread.error = KafkaConnectionError("away")
    assert not asyncio.run(consumer._commit({P0: 35}))
    assert consumer._filter_committable_offsets(set()) == {P0: 35}


def test_a_commit_never_goes_back(consumer: Consumer) -> None:
    """A rewound store publishes old changes again; Kafka's commit stays where it was."""
    asyncio.run(consumer.perform_seek())
    consumer.app.acknowledged = {P0: 12}
    assert consumer._filter_committable_offsets(set()) == {}


def test_time_that_passed_is_committed_too(consumer: Consumer) -> None:
    """Lapses are no records: that they were published shows in the time beside an offset that stays."""
    consumer.thread.ranges = {P0: LogRange(0, 50, 30, 1000), S0: LogRange(0, 9, None)}
    asyncio.run(consumer.perform_seek())
    consumer.app.acknowledged, consumer.app.time = {P0: 30}, 1000
    assert consumer._filter_committable_offsets(set()) == {}
    consumer.app.time = 1001
    assert consumer._filter_committable_offsets(set()) == {P0: 30}
    assert consumer.told_until[P0] == 1001
    asyncio.run(consumer._commit({P0: 30}))
    assert consumer._filter_committable_offsets(set()) == {}
    consumer.app.time = 500
    assert consumer._filter_committable_offsets(set()) == {}


def test_an_assignment_learns_kafkas_commit_anew(consumer: Consumer) -> None:
    """Another worker may have committed, or an operator deleted the commits, meanwhile."""
    asyncio.run(consumer.perform_seek())
    asyncio.run(consumer._commit({P0: 45, S0: 9}))
    consumer.thread.ranges = {P0: LogRange(0, 50, None), S0: LogRange(0, 9, 5)}
    asyncio.run(consumer.perform_seek())
    consumer.app.acknowledged = {P0: 1, S0: 5}
    assert consumer._filter_committable_offsets(set()) == {P0: 1}


# Progress


def state(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"has_valid_position": True, "position": 7, "lso": 9, "timestamp": 1_700_000_000_500} | given
    )


def test_progress_is_told_in_seconds(consumer: Consumer) -> None:
    """Where the next record is read, and where the log ended when it was last looked at."""
    consumer.thread.states = {key(P0): state()}
    assert consumer.progress(P0) == Progress(7, 9, pytest.approx(1_700_000_000.5, abs=0.001))


@pytest.mark.parametrize("unknown", [{"has_valid_position": False}, {"lso": None}, {"timestamp": None}])
def test_progress_that_is_not_known_is_none(consumer: Consumer, unknown: dict[str, Any]) -> None:
    """Before the first fetch, while a position is missing, and for what is not assigned."""
    consumer.thread.states = {key(P0): state(**unknown)}
    assert consumer.progress(P0) is None
    assert consumer.progress(S0) is None
    consumer.thread.states = None  # type: ignore[assignment]
    assert consumer.progress(P0) is None


# The thread


class Fetcher:
    """aiokafka's fetcher, with what is to be fetched next."""

    def __init__(self) -> None:
        self._closed = False
        self._subscriptions = self
        self.found: dict[TopicPartition, list[Rec]] = {}
        self.on_fetch: Any = lambda: None

    @contextlib.contextmanager
    def fetch_context(self) -> Iterator[None]:
        yield

    async def fetched_records(self, _: Any, **__: Any) -> Any:
        self.on_fetch()
        return self.found


class AioKafka:
    """aiokafka's consumer."""

    def __init__(self) -> None:
        self._closed = False
        self._fetcher = Fetcher()
        self.positions: dict[TopicPartition, int] = {}
        self.error: Exception | None = None
        self.committed_offsets: dict[TopicPartition, Any] = {}
        self._coordinator: Any = self
        self._performed_join_prepare = False
        subscription = SimpleNamespace(assignment=self)
        self._subscription = SimpleNamespace(subscription=subscription)
        #: Of which partitions nothing is asked for.
        self.held: set[TopicPartition] = set()

    def assignment(self) -> set[TopicPartition]:
        return {key(P0), key(S0)}

    def paused(self) -> set[TopicPartition]:
        return set(self.held)

    def pause(self, *tps: TopicPartition) -> None:
        self.held.update(tps)

    def resume(self, *tps: TopicPartition) -> None:
        self.held.difference_update(tps)

    def state_value(self, tp: TopicPartition) -> Any:
        return SimpleNamespace(position=self.positions[tp])

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if self.error is not None:
            raise self.error
        self.positions[tp] = offset

    async def commit(self, offsets: dict[TopicPartition, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.committed_offsets.update(offsets)

    async def fetch_committed_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        return {tp: self.committed_offsets[tp] for tp in tps if tp in self.committed_offsets}

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 4)

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 50)


class Coordinator:
    """aiokafka's coordination of the group, with the error that its user has not heard of."""

    def __init__(self, error: Exception | None = None, *, ended: bool = False) -> None:
        self.error, self._ended = error, ended
        self._coordination_task = self

    def done(self) -> bool:
        return self._ended

    def check_errors(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class Thread(BatchConsumerThread):
    """The consumer's thread, without a thread."""

    log = SimpleNamespace(warning=lambda *_: None)

    def __init__(self) -> None:
        owner = SimpleNamespace(lineage=lambda shard: "")
        self.consumer = SimpleNamespace(flow_active=True, read_from={}, told_until={}, owner=owner)
        self._consumer = AioKafka()  # type: ignore[assignment]

    def _ensure_consumer(self) -> Any:
        return self._consumer

    async def call_thread(self, fun: Any, *args: Any, **kwargs: Any) -> Any:
        return await fun(*args, **kwargs)

    def fetch(self, **found: tuple[int, list[int]]) -> dict[TP, FetchedRecords]:
        """Fetch records at these offsets of partition 0 of a topic; the position is then the first number."""
        aio: Any = self._consumer
        aio._fetcher.found = {}
        for topic, (position, offsets) in found.items():
            aio.positions[TopicPartition(topic, 0)] = position
            aio._fetcher.found[TopicPartition(topic, 0)] = [Rec(b"", None, offset) for offset in offsets]
        return asyncio.run(self._fetch_records(aio, set()))


@pytest.fixture
def thread() -> Thread:
    return Thread()


def test_ranges_have_no_gaps(thread: Thread) -> None:
    """A fetch covers everything from the end of the one before, control records and compacted ones included."""
    asyncio.run(thread.seek_to({P0: 10}, {P0: 3}))
    first = thread.fetch(purchases=(15, [12, 13]))[P0]
    assert (first.tp, first.start, first.end, first.epoch) == (P0, 10, 15, 3)
    assert [record.offset for record in first.records] == [12, 13]
    second = thread.fetch(purchases=(21, [16, 20]))[P0]
    assert (second.start, second.end) == (15, 21)


def test_a_positioning_begins_a_new_range(thread: Thread) -> None:
    """And the fetches after it carry its epoch."""
    asyncio.run(thread.seek_to({P0: 10, S0: 0}, {P0: 1, S0: 1}))
    thread.fetch(purchases=(15, [10]))
    asyncio.run(thread.seek_to({P0: 2}, {P0: 2}))
    assert thread._ensure_consumer().positions[key(P0)] == 2
    found = thread.fetch(purchases=(3, [2]), signups=(1, [0]))
    assert (found[P0].start, found[P0].end, found[P0].epoch) == (2, 3, 2)
    assert (found[S0].start, found[S0].end, found[S0].epoch) == (0, 1, 1)


def test_after_a_few_records_the_next_are_asked_for_when_they_are_wanted(thread: Thread) -> None:
    """An answer that came while these are worked on would only grow old; while it is waited for, nothing is held."""
    aio: Any = thread._ensure_consumer()
    thread.fetch(purchases=(15, [12, 13]))
    assert aio.held == {key(P0), key(S0)}
    held_meanwhile = []
    aio._fetcher.on_fetch = lambda: held_meanwhile.append(set(aio.held))
    thread.fetch()
    assert held_meanwhile == [set()]
    assert aio.held == set()


def test_after_many_records_the_next_are_fetched_meanwhile(thread: Thread) -> None:
    """Reading a backlog, the broker and the worker are both at work."""
    aio: Any = thread._ensure_consumer()
    thread.fetch(purchases=(15, [12, 13]))
    thread.fetch(purchases=(1015, list(range(15, 1015))))
    assert aio.held == set()


def test_nothing_is_fetched_while_the_flow_is_stopped(thread: Thread) -> None:
    """During a rebalance."""
    thread.consumer.flow_active = False
    assert thread.fetch(purchases=(15, [10])) == {}


@pytest.mark.parametrize(
    ("commit", "committed", "told_until"),
    [
        (None, None, NEVER),
        (OffsetAndMetadata(-1, ""), None, NEVER),
        (OffsetAndMetadata(30, ""), 30, NEVER),
        (OffsetAndMetadata(30, None), 30, NEVER),
        (OffsetAndMetadata(30, "1700000000000000"), 30, 1_700_000_000_000_000),
        (OffsetAndMetadata(0, "-5"), 0, -5),
        (OffsetAndMetadata(30, str(NEVER)), 30, NEVER),
        (OffsetAndMetadata(30, "set by somebody else"), 30, NEVER),
        (OffsetAndMetadata(30, "1" * 40), 30, NEVER),
        (OffsetAndMetadata(30, "5 partitions"), 30, NEVER),
    ],
)
def test_what_kafka_holds(thread: Thread, commit: Any, committed: int | None, told_until: int) -> None:
    """First offset, end, and the group's commit with its time; whatever another tool wrote there is no time."""
    if commit is not None:
        thread._ensure_consumer().committed_offsets[key(P0)] = commit
    assert asyncio.run(thread.log_ranges({P0, S0})) == {
        P0: LogRange(4, 50, committed, told_until),
        S0: LogRange(4, 50, None),
    }


def test_a_commit_carries_the_time_of_its_deadlines(thread: Thread) -> None:
    """What is committed is found again at the next assignment."""
    thread.consumer.told_until = {P0: 1_700_000_000_000_000}
    assert asyncio.run(thread._commit({P0: 5, S0: 0}))
    assert thread._ensure_consumer().committed_offsets[key(P0)] == OffsetAndMetadata(5, "1700000000000000")
    assert asyncio.run(thread.log_ranges({P0, S0})) == {
        P0: LogRange(4, 50, 5, 1_700_000_000_000_000),
        S0: LogRange(4, 50, 0),
    }


def test_nothing_is_committed_while_the_group_is_joined(thread: Thread) -> None:
    """It would be refused as of an old generation; it is made again after the rebalance."""
    thread._ensure_consumer()._performed_join_prepare = True
    assert not asyncio.run(thread._commit({P0: 5}))
    assert thread._ensure_consumer().committed_offsets == {}
    thread._ensure_consumer()._performed_join_prepare = False
    assert asyncio.run(thread._commit({P0: 5}))


@pytest.mark.parametrize(
    "error", [CommitFailedError("rebalanced"), KafkaConnectionError("away"), RuntimeError("closed")]
)
def test_a_commit_that_kafka_refuses_is_not_fatal(thread: Thread, error: Exception) -> None:
    """It only tells others how far we are, and is made again."""
    thread._ensure_consumer().error = error
    assert not asyncio.run(thread._commit({P0: 5}))


def test_a_group_that_had_an_error_goes_on(thread: Thread) -> None:
    """Hearing of the error lets the coordination join again."""
    coordinator = thread._ensure_consumer()._coordinator = Coordinator(KafkaConnectionError("away"))
    asyncio.run(thread.check())
    assert coordinator.error is None
    asyncio.run(thread.check())


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (GroupAuthorizationFailedError("g"), False),
        (TopicAuthorizationFailedError("t"), False),
        (KafkaConnectionError("away"), True),
    ],
)
def test_a_group_that_cannot_be_joined_is_told(thread: Thread, error: Exception, ended: bool) -> None:
    """A permission that is missing, or a coordination that has ended, is nothing to wait for."""
    thread._ensure_consumer()._coordinator = Coordinator(error, ended=ended)
    with pytest.raises(type(error)):
        asyncio.run(thread.check())


def test_a_consumer_that_is_not_there_yet_has_no_error(thread: Thread) -> None:
    """The check may come before the consumer."""
    thread._consumer = None
    asyncio.run(thread.check())


def test_a_worker_that_cannot_join_says_so(consumer: Consumer) -> None:
    """In a sentence, with Kafka's reason."""
    asyncio.run(consumer.check())
    consumer.thread.error = GroupAuthorizationFailedError("segmenter")
    with pytest.raises(ServiceUnavailable, match="Kafka does not let this worker into its group"):
        asyncio.run(consumer.check())


def test_a_session_timeout_that_kafka_refuses_names_its_setting(consumer: Consumer) -> None:
    """It is for the operator to mend, and joining again does not."""
    thread = Thread()
    thread._ensure_consumer()._coordinator = Coordinator(InvalidSessionTimeoutError("too long"))
    with pytest.raises(InvalidSessionTimeoutError):
        asyncio.run(thread.check())
    consumer.thread.error = InvalidSessionTimeoutError("too long")
    with pytest.raises(ConfigurationError, match="SEGMENTER_SESSION_TIMEOUT"):
        asyncio.run(consumer.check())


def test_the_consumer_is_made_to_lose_nothing() -> None:
    """No automatic reset, no automatic commit, committed transactions only, and partitions by range."""
    conf = SimpleNamespace(
        broker_credentials=None, ssl_context=None, broker_client_id="c", id="g", consumer_max_fetch_size=1 << 20,
        broker_request_timeout=40.0, broker_session_timeout=20.0, broker_rebalance_timeout=30.0,
        broker_heartbeat_interval=3.0, broker_max_poll_interval=None, consumer_metadata_max_age_ms=300_000,
    )  # fmt: skip
    transport = SimpleNamespace(url=[URL("kafka://127.0.0.1:1")], default_port=9092)
    thread = Thread()
    thread.app = SimpleNamespace(conf=conf)

    async def whole() -> None:
        made = thread._create_worker_consumer(transport)
        try:
            assert made._auto_offset_reset == "none"
            assert made._enable_auto_commit is False
            assert made._isolation_level == "read_committed"
            (assignor,) = made._partition_assignment_strategy
            assert issubclass(assignor, CopartitionedAssignor)
            assert made._fetch_max_wait_ms == 100
            assert made._session_timeout_ms == 20_000
            assert made._heartbeat_interval_ms == 3_000
        finally:
            await made.stop()

    asyncio.run(whole())
