"""KafkaPublisher: the messages that an outbox entry becomes, and when they count as published."""

import asyncio
import random
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from aiokafka import codec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from models.batch import Refusal
from models.changes import dead_letter
from models.clusters import Settings
from models.instants import FOREVER
from models.partitioner import partition_of
from models.records import Reader, read
from streams.commit import OutboxEntry
from streams.embedded.broker import EmbeddedBroker
from streams.errors import PublishRefused
from streams.kafka import publisher as publisher_module
from streams.kafka.publisher import KafkaPublisher, OutputTopics
from tests.support.samples import recorded, values
from tests.unit.build import Event, Feeder, Rec, at, erasure, make_policy, purchase, record, signup
from tests.unit.fakes import eventually, settle

TOPICS = OutputTopics("out.changes", "out.snapshots", "out.dead", "out.samples")
#: What librdkafka sends by default; a broker takes 1 MiB, and so may a record be that large.
LARGEST_MESSAGE = 1_000_000

Message = dict[str, Any]


class FakeProducer:
    """librdkafka's producer: takes messages, and calls back when it is polled."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.messages: list[Message] = []
        self.purged = False
        #: How many partitions every topic has; 0 if the broker does not say.
        self.partitions = 4
        #: The messages of whose delivery it is to tell.
        self.told: list[Message] = []
        #: How often the queue is full first; what produce raises or a delivery reports, by message.
        self.full = 0
        self.raises: dict[int, KafkaException] = {}
        self.errors: dict[int, KafkaError] = {}
        self.holding = threading.Event()
        #: Called before each message is taken, with how many were.
        self.before: Callable[[int], None] = lambda number: None
        #: Whether each message is acknowledged before the next one is handed over.
        self.eager = False
        self._undelivered: list[tuple[Callable[..., None], KafkaError | None]] = []
        self._lock = threading.Lock()

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        *,
        on_delivery: Callable[..., None] | None,
        headers: list[tuple[str, bytes]],
    ) -> None:
        self.before(len(self.messages))
        with self._lock:
            if self.full:
                self.full -= 1
                raise BufferError("Local: Queue full")
            number = len(self.messages)
            message = {"topic": topic, "value": value, "key": key, "partition": partition, "headers": headers}
            self.messages.append(message)
            if number in self.raises:
                raise self.raises[number]
            if on_delivery is None:
                return
            self.told.append(message)
            if not self.eager:
                self._undelivered.append((on_delivery, self.errors.get(number)))
        if self.eager:
            on_delivery(self.errors.get(number), None)

    def list_topics(self, topic: str, timeout: float) -> Any:
        if not self.partitions:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions=dict.fromkeys(range(self.partitions)))})

    def poll(self, timeout: float) -> int:
        with self._lock:
            ready, self._undelivered = ([], self._undelivered) if self.holding.is_set() else (self._undelivered, [])
        for deliver, error in ready:
            deliver(error, None)
        if not ready:
            self.idle()
        return len(ready)

    def idle(self) -> None:
        """What a poll does that finds nothing."""
        threading.Event().wait(0.0005)

    def purge(self, *, in_flight: bool = True, blocking: bool = True) -> None:
        self.purged = True
        with self._lock:
            purged = KafkaError(KafkaError._PURGE_QUEUE)
            self._undelivered = [(deliver, purged) for deliver, _ in self._undelivered]
        self.holding.clear()


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[KafkaPublisher]:
    monkeypatch.setattr(publisher_module, "Producer", FakeProducer)
    made = KafkaPublisher({"bootstrap.servers": "kafka:9092"}, TOPICS)
    yield made
    made.close()


def producer_of(publisher: KafkaPublisher) -> FakeProducer:
    producer = publisher._client.producer
    assert isinstance(producer, FakeProducer)
    return producer


def messages(publisher: KafkaPublisher, *entries: OutboxEntry) -> list[Message]:
    """What is produced for the entries."""
    producer_of(publisher).messages.clear()
    asyncio.run(publisher.publish(entries))
    return producer_of(publisher).messages


def entry(*events: Event, letters: Any = ()) -> OutboxEntry:
    """The entry that a batch of events gives."""
    return OutboxEntry("1-t", Feeder().feed(*events), letters)


def letter_of(made: Rec, reason: str = "a reason") -> Any:
    return dead_letter(Refusal("purchases", made, "some_code", reason), "shop.purchases", 3)


def on(topic: str, made: list[Message]) -> list[Message]:
    return [message for message in made if message["topic"] == topic]


# Messages


def test_a_change_is_keyed_by_its_customer(publisher: KafkaPublisher) -> None:
    """The value is the change as JSON, the key the customer_id as UTF-8, so that a customer's changes keep order."""
    made = entry(purchase("é1", "e1", at(0)), purchase("b", "e2", at(1)))
    found = on("out.changes", messages(publisher, made))
    assert [message["key"] for message in found] == ["é1".encode(), b"b"]
    assert [orjson.loads(message["value"]) for message in found] == list(made.changes)


def test_a_change_has_cloudevents_headers(publisher: KafkaPublisher) -> None:
    """CloudEvents 1.0, Kafka binding, binary mode: a consumer may route and drop repeats without parsing."""
    made = entry(purchase("é1", "e1", at(0)))
    (change,) = made.changes
    (message,) = on("out.changes", messages(publisher, made))
    assert message["headers"] == [
        ("ce_specversion", b"1.0"),
        ("ce_id", change["change_id"].encode()),
        ("ce_type", b"segment.changed.v1"),
        ("ce_source", b"segmenter"),
        ("ce_subject", "é1".encode()),
        ("ce_time", b"2024-01-01T00:00:00Z"),
        ("content-type", b"application/json"),
    ]


def test_a_snapshot_has_the_labels_after_the_last_change(publisher: KafkaPublisher) -> None:
    """One for each customer and entry, keyed alike, for a compacted topic."""
    made = entry(
        purchase("a", "1", at(0)), purchase("a", "2", at(1)), purchase("a", "3", at(2)), signup("b", "4", at(3))
    )
    found = on("out.snapshots", messages(publisher, made))
    assert [message["key"] for message in found] == [b"a", b"b"]
    assert [message["headers"] for message in found] == [[("content-type", b"application/json")]] * 2
    assert orjson.loads(found[0]["value"]) == {
        "customer_id": "a",
        "sequence": 2,
        "segments": {"lifecycle": "regular"},
        "as_of": "2024-01-03T00:00:00Z",
        "policy_version": 1,
    }


def test_an_erasure_is_a_tombstone(publisher: KafkaPublisher) -> None:
    """The compacted topic forgets an erased customer; one who comes back has labels again."""
    made = messages(publisher, entry(purchase("a", "1", at(0)), erasure("a", "2", at(1)), purchase("b", "3", at(1))))
    (gone, stays) = on("out.snapshots", made)
    assert (gone["key"], gone["value"]) == (b"a", None)
    assert stays["value"] is not None
    assert [orjson.loads(message["value"])["to"] for message in on("out.changes", made)] == ["new", None, "new"]
    made = messages(publisher, entry(purchase("a", "1", at(0)), erasure("a", "2", at(1)), purchase("a", "3", at(2))))
    (back,) = on("out.snapshots", made)
    assert orjson.loads(back["value"])["segments"] == {"lifecycle": "new"}


def test_a_change_that_is_withheld_shows_in_the_snapshot_only(publisher: KafkaPublisher) -> None:
    """Moves into segments too small for a campaign reach nobody who fires campaigns, and are no secret either."""
    events = [
        purchase("a", "1", at(0)),
        purchase("b", "2", at(1)),
        purchase("a", "3", at(2)),
        purchase("a", "4", at(3)),
    ]
    changes = entry(*events).changes
    assert [change["to"] for change in changes] == ["new", "new", "regular"]
    made = OutboxEntry("1-t", changes, (), (0, 2))
    for each in (made, OutboxEntry.decode(made.id, made.encode())):
        sent = messages(publisher, each)
        assert [orjson.loads(message["value"])["change_id"] for message in on("out.changes", sent)] == [
            changes[1]["change_id"]
        ]
        snapshots = {message["key"]: orjson.loads(message["value"]) for message in on("out.snapshots", sent)}
        assert {key: each["segments"]["lifecycle"] for key, each in snapshots.items()} == {b"a": "regular", b"b": "new"}
        assert snapshots[b"a"]["sequence"] == 2


def test_an_entry_of_which_everything_is_withheld(publisher: KafkaPublisher) -> None:
    """An erasure from a small segment is a tombstone all the same."""
    changes = entry(purchase("a", "1", at(0)), erasure("a", "2", at(1))).changes
    made = messages(publisher, OutboxEntry("1-t", changes, (), (0, 1)))
    assert [(message["topic"], message["key"], message["value"]) for message in made] == [("out.snapshots", b"a", None)]


def test_changes_come_before_the_snapshots_of_their_entry(publisher: KafkaPublisher) -> None:
    """And entries one after the other."""
    first, second = entry(purchase("a", "1", at(0))), entry(purchase("b", "2", at(1)))
    made = messages(publisher, first, second)
    assert [(message["topic"], message["key"]) for message in made] == [
        ("out.changes", b"a"), ("out.snapshots", b"a"), ("out.changes", b"b"), ("out.snapshots", b"b"),
    ]  # fmt: skip


def test_what_was_stored_is_sent_as_it_was_stored(publisher: KafkaPublisher) -> None:
    """An entry that an earlier owner left gives the same bytes."""
    made = entry(purchase("a", "1", at(0)), signup("é", "2", at(1)), letters=[letter_of(Rec(b"x", b"y"))])
    again = OutboxEntry.decode(made.id, made.encode())
    assert messages(publisher, again) == messages(publisher, made)


def test_draws_go_to_the_first_partition_of_the_samples(publisher: KafkaPublisher) -> None:
    """As they are, keyed by their dimension, wherever the key belongs; everything else is where it was."""
    draws = values(recorded(1, sample=40, dimension="größe"))
    made = OutboxEntry("1-t", Feeder().feed(purchase("a", "e1", at(0))), (), draws=draws)
    for each in (made, OutboxEntry.decode(made.id, made.encode())):
        found = messages(publisher, each)
        assert [message["value"] for message in on("out.samples", found)] == draws
        assert {(message["key"], message["partition"]) for message in on("out.samples", found)} == {
            ("größe".encode(), 0)
        }
        assert {message["partition"] for message in found if message["topic"] != "out.samples"} == {-1}
        assert len(found) == len(draws) + 2


def test_the_largest_draw_fits_a_message(publisher: KafkaPublisher) -> None:
    """The producer takes it however many digits its numbers have, and compressed it is less than a broker takes."""
    settings = Settings(features=tuple("abcdefgh"), clusters=50, sample=5000, seed=1)
    rng = np.random.default_rng(1)
    rows = tuple(map(tuple, (-rng.random((5000, 8)) * 10.0 ** rng.integers(17, 300, (5000, 8))).tolist()))
    keys = tuple(np.sort(rng.integers(2**63, 2**64, 5000, dtype=np.uint64)).tolist())
    (some,) = recorded(0, shards=1)
    draw = some.model_copy(update={"settings": settings, "keys": keys, "rows": rows}).encode()
    assert len(draw) < producer_of(publisher).config["message.max.bytes"]
    assert len(zlib.compress(draw, 1)) < 1_000_000


def test_a_dead_letter_has_everything_of_the_record(publisher: KafkaPublisher) -> None:
    """Code, reason, place, bytes and headers; it has no key, because the record's may be anything."""
    letter = letter_of(Rec(b"\xff", b"k", 7, 1_700_000_000_000, (("h", b"v"),)))
    (message,) = messages(publisher, OutboxEntry("1-t", (), [letter]))
    assert message["topic"] == "out.dead"
    assert message.get("key") is None
    assert message["headers"] == [("content-type", b"application/json")]
    assert orjson.loads(message["value"]) == {
        "code": "some_code", "reason": "a reason", "topic": "shop.purchases", "partition": 3, "offset": 7,
        "timestamp": 1_700_000_000_000, "key": "aw==", "value": "/w==", "headers": [["h", "dg=="]],
        "encoding": "base64",
    }  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [
        Rec(b"x" * 999_000, b"k", 5),
        Rec(b"x", b"k" * 999_000, 5),
        Rec(b"x", b"k", 5, headers=(("h", b"v" * 999_000),)),
        Rec(b"\xff" * 800_000, b"k", 5),
        Rec(b'"' * 600_000, b"k", 5),
    ],
    ids=["value", "key", "header", "base64", "escaped"],
)
def test_a_letter_that_is_too_large_goes_without_the_record(publisher: KafkaPublisher, made: Rec) -> None:
    """The broker would refuse it for ever; the place where the record can be read is kept."""
    (message,) = messages(publisher, OutboxEntry("1-t", (), [letter_of(made)]))
    assert len(message["value"]) < 1000
    sent = orjson.loads(message["value"])
    assert (sent["key"], sent["value"], sent["headers"]) == (None, None, [])
    assert (sent["topic"], sent["partition"], sent["offset"], sent["code"]) == ("shop.purchases", 3, 5, "some_code")
    assert sent["reason"] == "a reason (the value is too large to copy; read it at its topic and offset)"


def test_a_letter_that_just_fits_is_whole(publisher: KafkaPublisher) -> None:
    """Only what is over 900 kB is cut."""
    (message,) = messages(publisher, OutboxEntry("1-t", (), [letter_of(Rec(b"x" * 890_000, b"k"))]))
    assert orjson.loads(message["value"])["value"] == "x" * 890_000


def test_every_letter_fits_a_message(publisher: KafkaPublisher) -> None:
    """Whatever a producer sent, the broker takes its dead letter: else the record would block the shard for ever."""
    event = purchase("a", "1", at(0), attributes={"k" * 1_040_000: []})
    assert len(record(event).value or b"") < 1_048_576
    _, refusals = read("purchases", [record(event)], Reader(make_policy(), 0, 1, FOREVER))
    letters = [dead_letter(refusal, "purchases", 0) for refusal in refusals]
    (message,) = messages(publisher, OutboxEntry("1-t", (), letters))
    assert len(message["value"]) < LARGEST_MESSAGE


def test_no_entries_are_published_at_once(publisher: KafkaPublisher) -> None:
    """Nothing to send needs no acknowledgement."""
    assert messages(publisher) == []
    assert messages(publisher, OutboxEntry("1-t", (), ())) == []


# Delivery


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_publish_returns_when_every_message_is_acknowledged(publisher: KafkaPublisher) -> None:
    """Not before."""
    producer = producer_of(publisher)

    async def scenario() -> None:
        producer.holding.set()
        task = asyncio.create_task(publisher.publish([entry(purchase("a", "1", at(0)))]))
        await eventually(lambda: len(producer.messages) == 2)
        await settle()
        assert not task.done()
        producer.holding.clear()
        await task

    run(scenario)


def test_only_a_few_messages_are_handed_over_in_the_event_loop(publisher: KafkaPublisher) -> None:
    """Very many would hold up everything else there."""
    threads = set[str]()
    producer_of(publisher).before = lambda number: threads.add(threading.current_thread().name)
    messages(publisher, entry(*(purchase(f"c{i}", f"{i}", at(0)) for i in range(50))))
    assert threads == {threading.main_thread().name}
    threads.clear()
    messages(publisher, entry(*(purchase(f"c{i}", f"{i}", at(0)) for i in range(51))))
    assert threads
    assert threading.main_thread().name not in threads


def test_the_event_loop_does_not_wait_for_another_thread(publisher: KafkaPublisher) -> None:
    """While another shard's messages are handed over, even a few go to a thread of their own."""

    async def scenario() -> None:
        with publisher._handing:
            task = asyncio.create_task(publisher.publish([entry(purchase("a", "1", at(0)))]))
            await settle()
            assert not producer_of(publisher).messages
        await task
        assert len(producer_of(publisher).messages) == 2

    run(scenario)


@pytest.mark.parametrize("customers", [2, 300])
def test_a_full_queue_is_waited_for(publisher: KafkaPublisher, customers: int) -> None:
    """librdkafka's queue may be full for a while, at once or in the middle; nothing is lost or sent twice."""
    producer = producer_of(publisher)
    producer.full = 5

    def full(number: int) -> None:
        if number == 250 and not producer.full:
            producer.before = lambda number: None
            raise BufferError("Local: Queue full")

    producer.before = full
    names = [f"c{i}" for i in range(customers)]
    made = messages(publisher, entry(*(purchase(name, name, at(0)) for name in names)))
    assert [message["key"] for message in made] == [name.encode() for name in [*names, *names]]


def test_of_many_messages_the_last_of_each_partition_tells_that_all_are_there(publisher: KafkaPublisher) -> None:
    """Each is sent to the partition of its key; to be told of every one would take as long as to send it."""
    producer = producer_of(publisher)
    made = [entry(*(purchase(f"{part}{i}", f"{part}{i}", at(0)) for i in range(60))) for part in "ab"]
    found = messages(publisher, *made)
    assert [message["partition"] for message in found] == [partition_of(message["key"], 4) for message in found]
    # 120 messages an entry: changes, then snapshots, with all four partitions among each.
    assert len(producer.told) == 16
    for start in range(0, 240, 60):
        last = {message["partition"]: message["key"] for message in found[start : start + 60]}
        told = {message["partition"]: message["key"] for message in producer.told[start // 15 : start // 15 + 4]}
        assert told == last


def test_what_is_withheld_is_no_last_message(publisher: KafkaPublisher) -> None:
    """Nobody would tell of it."""
    changes = entry(*(purchase(f"c{i}", f"{i}", at(0)) for i in range(60))).changes
    producer_of(publisher).partitions = 1
    messages(publisher, OutboxEntry("1-t", changes, (), tuple(range(30, 60))))
    assert [(each["topic"], each["key"]) for each in producer_of(publisher).told] == [
        ("out.changes", b"c29"),
        ("out.snapshots", b"c59"),
    ]


def test_while_the_broker_does_not_say_how_many_partitions_there_are(publisher: KafkaPublisher) -> None:
    """librdkafka finds them by the keys, and tells of every message."""
    producer_of(publisher).partitions = 0
    found = messages(publisher, entry(*(purchase(f"c{i}", f"{i}", at(0)) for i in range(60))))
    assert {message["partition"] for message in found} == {-1}
    assert len(producer_of(publisher).told) == len(found) == 120


def test_letters_and_draws_are_told_of_each(publisher: KafkaPublisher) -> None:
    """Letters have no key by which to find their partition."""
    letters = [letter_of(Rec(b"x", b"k", place)) for place in range(60)]
    found = messages(publisher, OutboxEntry("1-t", (), letters, (), (), values(recorded(1, sample=40))))
    assert producer_of(publisher).told == found


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_message_that_is_refused_for_good_is_told(publisher: KafkaPublisher, number: int) -> None:
    """Whether the broker reports it or the client refuses at once: PublishRefused says why."""
    producer = producer_of(publisher)
    producer.errors = {number: KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)}
    entries = [entry(purchase("a", "1", at(0))), entry(purchase("b", "2", at(0)))]
    with pytest.raises(PublishRefused, match=r"Kafka refused a message for good: .*; it stays in the outbox"):
        messages(publisher, *entries)
    producer.errors = {}
    producer.raises = {number: KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))}
    with pytest.raises(PublishRefused, match=r"(?i)size too large|MSG_SIZE_TOO_LARGE"):
        messages(publisher, *entries)
    producer.raises = {}
    assert len(messages(publisher, *entries)) == 4


@pytest.mark.parametrize("number", [1, 3])
def test_acknowledgements_that_come_early_are_no_end(publisher: KafkaPublisher, number: int) -> None:
    """The broker may be faster than we are: what was acknowledged so far is not everything."""
    producer = producer_of(publisher)
    producer.eager = True
    entries = [entry(purchase("a", "1", at(0))), entry(purchase("b", "2", at(0)))]
    assert len(messages(publisher, *entries)) == 4
    producer.errors = {number: KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)}
    with pytest.raises(PublishRefused):
        messages(publisher, *entries)


def test_many_entries_at_once(publisher: KafkaPublisher) -> None:
    """Several shards publish side by side; each gets its own acknowledgement."""
    producer = producer_of(publisher)

    async def scenario() -> None:
        entries = [entry(purchase(f"c{i}", f"{i}", at(i))) for i in range(20)]
        producer.errors = {7: KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)}
        results = await asyncio.gather(*(publisher.publish([each]) for each in entries), return_exceptions=True)
        assert sum(isinstance(result, PublishRefused) for result in results) == 1
        assert sum(result is None for result in results) == 19

    run(scenario)


def test_an_acknowledgement_after_the_loop_has_ended_is_harmless(publisher: KafkaPublisher) -> None:
    """At shutdown nobody waits any more."""
    producer = producer_of(publisher)
    producer.holding.set()

    async def scenario() -> None:
        task = asyncio.create_task(publisher.publish([entry(purchase("a", "1", at(0)))]))
        await eventually(lambda: len(producer.messages) == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(scenario)
    producer.holding.clear()
    producer.poll(0)
    assert publisher._poller.is_alive()
    assert messages(publisher, entry(purchase("b", "2", at(0))))


def test_close_ends_the_poller_and_gives_up_the_queue(publisher: KafkaPublisher) -> None:
    """What is not acknowledged stays in the outbox, not in the process."""
    publisher.close()
    assert producer_of(publisher).purged
    assert not publisher._poller.is_alive()


def test_workers_can_read_what_is_compressed() -> None:
    """Draws are compressed and read again by workers; so may producers compress events, with any codec of Kafka's."""
    assert codec.has_lz4()
    assert codec.has_snappy()
    assert codec.has_zstd()


def test_the_producer_neither_loses_nor_doubles_nor_reorders(publisher: KafkaPublisher) -> None:
    """Idempotent, without an end to its retries, and with Kafka's own partitioner."""
    config = producer_of(publisher).config
    assert config["bootstrap.servers"] == "kafka:9092"
    assert config["enable.idempotence"] is True
    assert config["enable.gapless.guarantee"] is True
    assert config["message.timeout.ms"] == 0
    assert config["partitioner"] == "murmur2_random"


# A shard that is given away


def test_what_is_on_its_way_when_a_shard_is_given_away_is_purged(publisher: KafkaPublisher) -> None:
    """It must not come after what the next owner sends; what was purged of another shard is sent once more."""
    producer = producer_of(publisher)

    async def scenario() -> None:
        producer.holding.set()
        leaving = asyncio.create_task(publisher.publish([entry(purchase("a", "1", at(0)))]))
        staying = asyncio.create_task(publisher.publish([entry(purchase("b", "2", at(0)))]))
        await eventually(lambda: len(producer.messages) == 4)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert producer.purged
        await asyncio.wait_for(staying, 5)

    asyncio.run(scenario())
    assert [message["key"] for message in on(TOPICS.changes, producer.messages)] == [b"a", b"b"]
    assert [message["key"] for message in on(TOPICS.changes, producer_of(publisher).messages)] == [b"b"]


def test_a_purge_in_the_middle_keeps_the_order(publisher: KafkaPublisher) -> None:
    """What is handed over after a purge would come before what it took, which is sent again: so nothing is."""
    producer = producer_of(publisher)
    reached = threading.Event()

    def full(number: int) -> None:
        if number == 5 and not producer.purged:
            reached.set()
            raise BufferError("Local: Queue full")

    async def scenario() -> None:
        producer.holding.set()
        leaving = asyncio.create_task(publisher.publish([entry(purchase("a", "1", at(0)))]))
        await eventually(lambda: len(producer.messages) == 2)
        producer.before = full
        staying = asyncio.create_task(publisher.publish([entry(purchase(c, c, at(0))) for c in "bcde"]))
        await eventually(reached.is_set)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.wait_for(staying, 5)

    asyncio.run(scenario())
    keys = [message["key"] for message in on(TOPICS.changes, producer.messages)]
    assert keys == [b"a", b"b", b"c"]
    again = producer_of(publisher).messages
    assert [message["key"] for message in on(TOPICS.changes, again)] == [b"b", b"c", b"d", b"e"]
    assert (len(producer.messages), len(again)) == (2 + 3, 8)


@pytest.mark.parametrize("seed", [1, 2])
def test_purges_of_one_shard_keep_the_order_of_another(seed: int) -> None:
    """With librdkafka itself: repeats left out, everything comes in its order, however often a shard is given away."""
    rng, sent, chunk, left = random.Random(seed), 0, 200, 0
    with EmbeddedBroker() as broker:
        broker.create_topics(["mine", TOPICS.snapshots])
        publisher = KafkaPublisher({"bootstrap.servers": broker.address}, TOPICS)

        async def leave() -> None:
            nonlocal left
            while True:
                await asyncio.sleep(0.05)  # a new connection takes less
                before = publisher._client
                leaving = asyncio.create_task(publisher.publish_snapshots({f"z{i}": b"" for i in range(50)}))
                await asyncio.sleep(rng.random() * 0.001)
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
                left += publisher._client is not before

        async def scenario() -> None:
            nonlocal sent
            others = asyncio.create_task(leave())
            while left < 10:
                end = sent + chunk
                part = [("mine", b"k", b"%d" % number, [], 0, number == end - 1) for number in range(sent, end)]
                await publisher._deliver(lambda part=part: part, few=rng.random() < 0.5)  # type: ignore[misc]
                sent = end
                await asyncio.sleep(rng.random() * 0.01)  # the embedded broker does not keep very much
            others.cancel()
            await asyncio.gather(others, return_exceptions=True)

        asyncio.run(scenario())
        publisher.close()
        with closing(Consumer({"bootstrap.servers": broker.address, "group.id": "g", "log_level": 0})) as consumer:
            consumer.assign([TopicPartition("mine", 0, 0)])
            end = consumer.get_watermark_offsets(TopicPartition("mine", 0))[1]
            found: list[int] = []
            while len(found) < end:
                found += [int(message.value() or b"") for message in consumer.consume(1000, 5)]
    assert list(dict.fromkeys(found)) == list(range(sent))
