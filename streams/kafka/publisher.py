"""KafkaPublisher: changes, snapshots, dead letters and draws onto their topics, with librdkafka's producer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, Final

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from models.changes import JSON_CONTENT, headers_of
from models.partitioner import partitions_of
from streams import failpoints
from streams.commit import OutboxEntry
from streams.errors import PublishRefused
from streams.retry import TOO_LARGE

_Headers = list[tuple[str, bytes]]
#: Topic, key, value, headers, partition, and whether librdkafka is to tell of its delivery.
_Message = tuple[str, bytes | None, bytes | None, _Headers, int, bool]
#: The key decides on the partition.
_BY_KEY: Final = -1
_FIRST: Final = 0
#: Messages between which nothing else is handed over: who loses a shard waits for them.
_HANDED_AT_ONCE: Final = 100
#: Changes, dead letters and draws, or snapshots, that are handed over in the event loop.
_FEW: Final = 50
_JSON: Final = [JSON_CONTENT]
#: Brokers take 1 MiB a message by default; a larger dead letter is sent without the record's value.
_LARGEST_LETTER: Final = 900_000
#: confluent-kafka turns the flag round: with True it does not wait for librdkafka's threads, which takes milliseconds.
_WAIT_FOR_PURGE: Final = False
#: Seconds: how long a topic is taken to have as many partitions as it had, and how long the broker is asked.
_COUNTED_FOR: Final = 60.0
_ASKED_FOR: Final = 5.0


@dataclass(frozen=True, slots=True)
class OutputTopics:
    """Where each kind of message goes; samples always to the first partition."""

    changes: str
    snapshots: str
    dead_letters: str
    samples: str


class _Client:
    """librdkafka's producer until it is given up, with the deliveries that wait for it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.producer: Final = Producer(dict(options))
        self.given_up = False
        self.waiting: Final[set[_Delivery]] = set()

    def poll(self, timeout: float) -> None:
        """Have librdkafka tell what it knows, for at most ``timeout`` seconds."""
        try:
            self.producer.poll(timeout)
        except KafkaException as error:
            # It has come to its end, and not every message is told of.
            for delivery in list(self.waiting):
                delivery.fail(error.args[0])

    def purge(self) -> None:
        """Drop what is not on the wire yet. To drop that, too, would be a gap, and librdkafka would say so."""
        self.producer.purge(in_flight=False, blocking=_WAIT_FOR_PURGE)

    def give_up(self) -> None:
        """Nothing more goes out from here; whoever waits for it must send again."""
        self.given_up = True
        self.purge()
        for delivery in self.waiting:
            delivery.give_up()


class _Delivery:
    """Counts the acknowledgements of a group of messages and wakes its waiter in the event loop."""

    # It does not know its client: librdkafka, which knows it, would never end then.

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: Messages that have been handed over.
        self.handed = 0
        #: Messages among them of which librdkafka tells.
        self.told_of = 0
        #: Whether the broker has them all; if not, they must be sent again.
        self.done: asyncio.Future[bool] = loop.create_future()
        #: One for each message told of: to append is atomic, and cheaper than to count under a lock.
        self._told: list[None] = []
        self._sealed = False
        self._error: KafkaError | None = None

    def seal(self) -> None:
        """Everything has been handed over."""
        self._sealed = True
        self._wake_if_over()

    def refused(self, error: KafkaError) -> None:
        """librdkafka has not taken a message, or the broker has not."""
        self._error = self._error or error

    def fail(self, error: KafkaError) -> None:
        """Nobody will tell of it any more."""
        self.refused(error)
        self._wake()

    def give_up(self) -> None:
        """Its client has been given up. In the event loop."""
        if not self.done.done():
            self.done.set_result(False)

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.refused(error)
        self._told.append(None)
        self._wake_if_over()

    def _wake_if_over(self) -> None:
        # Told of early is not over: more may be handed over.
        if self._sealed and len(self._told) == self.told_of:
            self._wake()

    def _wake(self) -> None:
        # At shutdown the loop may be gone; then nobody waits any more.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self.done.done():
            return
        if self._error is None:
            self.done.set_result(True)
        else:
            self.done.set_exception(
                PublishRefused(f"Kafka refused a message for good: {self._error.str()}; it stays in the outbox")
            )


class KafkaPublisher:
    """See Publisher. Messages are retried until the broker takes them; order is kept within a partition.

    ``options`` are librdkafka's: how the broker is reached.

    Of many messages librdkafka tells only of the last on each partition: to be told takes as long as to hand over. The
    broker takes a producer's messages in their order, and a producer of which it has refused one is at its end
    (``enable.gapless.guarantee``), so with the last it has all.
    """

    def __init__(self, options: Mapping[str, Any], topics: OutputTopics) -> None:
        self._topics = topics
        self._options = {
            **options,
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            # Consumers of changes are keyed like the input: Kafka's own partitioner, not librdkafka's.
            "partitioner": "murmur2_random",
            "message.timeout.ms": 0,
            "linger.ms": 0.5,
            "compression.type": "lz4",
            # A draw of many numbers may be larger; brokers count what is left of it after compression.
            "message.max.bytes": 2_000_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 262_144,
            "log_level": 3,
        }
        self._client = _Client(self._options)
        #: Partitions by topic, and when they were counted (monotonic seconds).
        self._counted: dict[str, tuple[int, float]] = {}
        self._open = True
        #: Held while a few messages are handed over, or a client is given up.
        self._handing = threading.Lock()
        self._poller = threading.Thread(target=self._poll, name="publisher", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        # A producer that has been given up ends here, with the last that knows it.
        while self._open:
            self._client.poll(0.1)

    def close(self) -> None:
        """Stop. What has not been acknowledged stays in the outbox."""
        self._open = False
        self._poller.join(timeout=1)
        self._client.purge()

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """See Publisher."""
        few = sum(entry.size for entry in entries) <= _FEW
        await self._deliver(lambda: (message for entry in entries for message in self._messages(entry, few)), few)

    async def publish_snapshots(self, snapshots: Mapping[str, bytes | None]) -> None:
        """See Publisher."""
        few = len(snapshots) <= _FEW
        await self._deliver(lambda: self._snapshots(snapshots, few), few)

    async def _deliver(self, messages: Callable[[], Iterable[_Message]], few: bool) -> None:
        """Send messages until the broker has all of them.

        When this is cancelled, because the shard is given away or loaded again, what is still on its way is given up:
        the next owner sends it, too, and then newer snapshots, after which these would come.
        """
        everything = False
        while not everything:
            client, delivery = self._client, _Delivery(asyncio.get_running_loop())
            client.waiting.add(delivery)
            try:
                # To begin something in another thread takes longer than to hand over a few messages.
                if not few or not self._send_at_once(messages, client, delivery):
                    await asyncio.to_thread(self._send, messages, client, delivery)
                failpoints.reached("after-publish")
                everything = await delivery.done
            except asyncio.CancelledError:
                if not delivery.done.done() or delivery.done.cancelled():
                    self._give_up(client)
                raise
            finally:
                client.waiting.discard(delivery)

    def _give_up(self, client: _Client) -> None:
        """Messages of other shards go with it; whoever waits for them sends them again, all in their order.

        So nothing may be handed over of what was begun earlier. The next client has to connect first.
        """
        with self._handing:
            if not client.given_up:
                self._client = _Client(self._options)
                client.give_up()

    def _send_at_once(self, messages: Callable[[], Iterable[_Message]], client: _Client, delivery: _Delivery) -> bool:
        """Hand over what can be without waiting for anything. Returns whether that was all."""
        if not self._open or not self._handing.acquire(blocking=False):
            return False
        try:
            waiting = list(messages())
            everything = self._hand_over(waiting, client, delivery) == len(waiting)
        finally:
            self._handing.release()
        if everything:
            delivery.seal()
        return everything

    def _send(self, messages: Callable[[], Iterable[_Message]], client: _Client, delivery: _Delivery) -> None:
        """Hand over what has not been yet, unless its client is given up meanwhile, or everything ends.

        Never are all of them there at once: so many objects would have Python look for cycles among them.
        """
        waiting = islice(messages(), delivery.handed, None)
        part = list(islice(waiting, _HANDED_AT_ONCE))
        while part and self._open:
            with self._handing:
                if client.given_up:
                    return
                handed = self._hand_over(part, client, delivery)
            if handed < len(part):
                client.poll(0.05)
            part = [*part[handed:], *islice(waiting, handed)]
        if self._open:
            delivery.seal()

    def _hand_over(self, part: Sequence[_Message], client: _Client, delivery: _Delivery) -> int:
        """Returns how many messages have been handed over: not all if librdkafka's queue is full."""
        produce, handed = client.producer.produce, 0
        try:
            for topic, key, value, headers, partition, told in part:
                try:
                    produce(topic, value, key, partition, on_delivery=delivery if told else None, headers=headers)
                    delivery.told_of += told
                except KafkaException as error:
                    delivery.refused(error.args[0])
                handed += 1
        except BufferError:
            pass
        delivery.handed += handed
        return handed

    def _messages(self, entry: OutboxEntry, few: bool) -> Iterator[_Message]:
        topics, wire = self._topics, entry.wire
        columns: Sequence[Sequence[Any]] = (wire.values, wire.ids, wire.customers, wire.effective_at)
        if entry.withheld:
            told = sorted({*range(len(wire))}.difference(entry.withheld))
            columns = [[column[place] for place in told] for column in columns]
        values, ids, customers, effective_at = columns
        keys = [customer.encode() for customer in customers]
        changes = zip(values, ids, keys, effective_at, strict=True)
        for (value, ident, key, at), (partition, last) in zip(
            changes, self._places(topics.changes, keys, few), strict=True
        ):
            yield topics.changes, key, value, headers_of(ident, key, at), partition, last
        # A move that is withheld is a move all the same: snapshots show where each customer is now.
        yield from self._snapshots(dict(wire.snapshots()), few)
        yield from self._snapshots(dict.fromkeys(entry.forgotten), few)
        for letter in entry.dead_letters:
            value = orjson.dumps(letter)
            if len(value) > _LARGEST_LETTER:
                reason = f"{letter['reason']} {TOO_LARGE}"
                value = orjson.dumps({**letter, "reason": reason, "key": None, "value": None, "headers": []})
            yield topics.dead_letters, None, value, _JSON, _BY_KEY, True
        for draw in entry.draws:
            yield topics.samples, orjson.loads(draw)["dimension"].encode(), draw, _JSON, _FIRST, True

    def _snapshots(self, snapshots: Mapping[str, bytes | None], few: bool) -> Iterator[_Message]:
        topic, keys = self._topics.snapshots, [customer.encode() for customer in snapshots]
        messages = zip(keys, snapshots.values(), strict=True)
        for (key, labels), (partition, last) in zip(messages, self._places(topic, keys, few), strict=True):
            yield topic, key, labels, _JSON, partition, last

    def _places(self, topic: str, keys: Sequence[bytes], few: bool) -> Iterable[tuple[int, bool]]:
        """The partition of each message, and whether it is the last of them there.

        Of a few messages librdkafka finds the partitions, and tells of each: to know how many there are takes time.
        """
        partitions = 0 if few or not keys else self._partitions(topic)
        if not partitions:
            return repeat((_BY_KEY, True), len(keys))
        places = partitions_of(keys, partitions).tolist()
        last = {partition: number for number, partition in enumerate(places)}
        lasts = [False] * len(places)
        for number in last.values():
            lasts[number] = True
        return zip(places, lasts, strict=True)

    def _partitions(self, topic: str) -> int:
        """How many partitions a topic has; 0 if nobody says so."""
        count, since = self._counted.get(topic, (0, 0.0))
        if not count or time.monotonic() - since > _COUNTED_FOR:
            try:
                count = len(self._client.producer.list_topics(topic, _ASKED_FOR).topics[topic].partitions)
            except KafkaException:
                return 0
            self._counted[topic] = count, time.monotonic()
        return count
