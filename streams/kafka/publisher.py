"""KafkaPublisher: changes, snapshots, dead letters and draws onto their topics, with librdkafka's producer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from models.changes import JSON_CONTENT, headers_of
from streams import failpoints
from streams.commit import OutboxEntry
from streams.errors import PublishRefused
from streams.retry import TOO_LARGE

_Headers = list[tuple[str, bytes]]
#: Topic, key, value, headers, partition.
_Message = tuple[str, bytes | None, bytes | None, _Headers, int]
#: The key decides on the partition.
_BY_KEY: Final = -1
_FIRST: Final = 0
#: Messages between which nothing else is handed over: what is purged waits for them.
_HANDED_AT_ONCE: Final = 100
#: Changes, dead letters and draws, or snapshots, that are handed over in the event loop.
_FEW: Final = 50
_JSON: Final = [JSON_CONTENT]
#: Brokers take 1 MiB a message by default; a larger dead letter is sent without the record's value.
_LARGEST_LETTER: Final = 900_000
#: confluent-kafka turns the flag round: with True it does not wait for librdkafka's threads, which takes milliseconds.
_WAIT_FOR_PURGE: Final = False
_PURGED: Final = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)


@dataclass(frozen=True, slots=True)
class OutputTopics:
    """Where each kind of message goes; samples always to the first partition."""

    changes: str
    snapshots: str
    dead_letters: str
    samples: str


class _Delivery:
    """Counts the acknowledgements of a group of messages and wakes its waiter in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, purges: int) -> None:
        self._loop = loop
        #: How many purges there had been when it began: after another, nothing more of it is handed over.
        self.purges: Final = purges
        #: Messages that have been handed over.
        self.handed = 0
        #: Whether the broker has them all; if not, they were purged and must be sent again.
        self.done: asyncio.Future[bool] = loop.create_future()
        #: How many there are, known once all have been handed over.
        self._expected = -1
        #: One for each acknowledgement: to append is atomic, and cheaper than to count under a lock.
        self._acknowledged: list[None] = []
        self._error: KafkaError | None = None
        self._purged = False

    @property
    def over(self) -> bool:
        """Whether nothing more is handed over, and it is known what became of everything."""
        return len(self._acknowledged) == self._expected

    def seal(self, *, whole: bool) -> None:
        """Nothing more is handed over; whether that was every message."""
        self._purged = self._purged or not whole
        self._expected = self.handed
        if len(self._acknowledged) == self._expected:
            self._wake()

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() in _PURGED:
            self._purged = True
        elif error is not None:
            self._error = self._error or error
        self._acknowledged.append(None)
        if len(self._acknowledged) == self._expected:
            self._wake()

    def _wake(self) -> None:
        # At shutdown the loop may be gone; then nobody waits any more.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self.done.done():
            return
        if self._error is None:
            self.done.set_result(not self._purged)
        else:
            self.done.set_exception(
                PublishRefused(f"Kafka refused a message for good: {self._error.str()}; it stays in the outbox")
            )


class KafkaPublisher:
    """See Publisher. Messages are retried until the broker takes them; order is kept within a partition.

    ``options`` are librdkafka's: how the broker is reached.
    """

    def __init__(self, options: Mapping[str, Any], topics: OutputTopics) -> None:
        self._topics = topics
        self._producer = Producer(
            {
                **options,
                "enable.idempotence": True,
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
        )
        self._open = True
        #: Held while a few messages are handed over, or all are purged.
        self._handing = threading.Lock()
        self._purges = 0
        self._poller = threading.Thread(target=self._poll, name="publisher", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while self._open:
            self._producer.poll(0.1)

    def close(self) -> None:
        """Stop. What has not been acknowledged stays in the outbox."""
        self._open = False
        self._poller.join(timeout=1)
        self._producer.purge()

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """See Publisher."""
        few = sum(entry.size for entry in entries) <= _FEW
        await self._deliver(lambda: (message for entry in entries for message in self._messages(entry)), few)

    async def publish_snapshots(self, snapshots: Mapping[str, bytes | None]) -> None:
        """See Publisher."""
        topic = self._topics.snapshots
        await self._deliver(
            lambda: ((topic, customer.encode(), value, _JSON, _BY_KEY) for customer, value in snapshots.items()),
            len(snapshots) <= _FEW,
        )

    async def _deliver(self, messages: Callable[[], Iterable[_Message]], few: bool) -> None:
        """Send messages until the broker has all of them.

        When this is cancelled, because the shard is given away or loaded again, what is still on its way is purged:
        the next owner sends it, too, and then newer snapshots, after which these would come.
        """
        everything = False
        while not everything:
            delivery = _Delivery(asyncio.get_running_loop(), self._purges)
            try:
                # To begin something in another thread takes longer than to hand over a few messages.
                if not few or not self._send_at_once(messages, delivery):
                    await asyncio.to_thread(self._send, messages, delivery)
                failpoints.reached("after-publish")
                everything = await delivery.done
            except asyncio.CancelledError:
                if not delivery.over:
                    self._purge()
                raise

    def _purge(self) -> None:
        """Messages of other shards are purged, too; whoever waits for them sends them again, all in their order.

        So nothing may be handed over after a purge of what should have come before it: not until it is done, and
        nothing at all of what was begun earlier.
        """
        with self._handing:
            self._purges += 1
            self._producer.purge(blocking=_WAIT_FOR_PURGE)

    def _send_at_once(self, messages: Callable[[], Iterable[_Message]], delivery: _Delivery) -> bool:
        """Hand over what can be without waiting for anything. Returns whether that was all."""
        if not self._open or not self._handing.acquire(blocking=False):
            return False
        try:
            waiting = list(messages())
            everything = self._hand_over(waiting, delivery) == len(waiting)
        finally:
            self._handing.release()
        if everything:
            delivery.seal(whole=True)
        return everything

    def _send(self, messages: Callable[[], Iterable[_Message]], delivery: _Delivery) -> None:
        """Hand over what has not been yet, unless there is a purge meanwhile, or the end."""
        waiting = list(messages())
        while delivery.handed < len(waiting) and self._open:
            part = waiting[delivery.handed : delivery.handed + _HANDED_AT_ONCE]
            with self._handing:
                if delivery.purges != self._purges:
                    break
                handed = self._hand_over(part, delivery)
            if handed < len(part):
                self._producer.poll(0.05)
        everything = delivery.handed == len(waiting)
        if everything or self._open:
            delivery.seal(whole=everything)

    def _hand_over(self, part: Sequence[_Message], delivery: _Delivery) -> int:
        """Returns how many messages have been handed over: not all if librdkafka's queue is full."""
        produce, handed = self._producer.produce, 0
        try:
            for topic, key, value, headers, partition in part:
                try:
                    produce(topic, value, key, partition, on_delivery=delivery, headers=headers)
                except KafkaException as error:
                    delivery(error.args[0], None)
                handed += 1
        except BufferError:
            pass
        delivery.handed += handed
        return handed

    def _messages(self, entry: OutboxEntry) -> Iterator[_Message]:
        topics, wire, withheld = self._topics, entry.wire, set(entry.withheld)
        changes = zip(wire.values, wire.ids, wire.customers, wire.effective_at, strict=True)
        for place, (value, ident, customer, effective_at) in enumerate(changes):
            if place not in withheld:
                key = customer.encode()
                yield topics.changes, key, value, headers_of(ident, key, effective_at), _BY_KEY
        # A move that is withheld is a move all the same: snapshots show where each customer is now.
        for customer, labels in wire.snapshots():
            yield topics.snapshots, customer.encode(), labels, _JSON, _BY_KEY
        for customer in entry.forgotten:
            yield topics.snapshots, customer.encode(), None, _JSON, _BY_KEY
        for letter in entry.dead_letters:
            value = orjson.dumps(letter)
            if len(value) > _LARGEST_LETTER:
                reason = f"{letter['reason']} {TOO_LARGE}"
                value = orjson.dumps({**letter, "reason": reason, "key": None, "value": None, "headers": []})
            yield topics.dead_letters, None, value, _JSON, _BY_KEY
        for draw in entry.draws:
            yield topics.samples, orjson.loads(draw)["dimension"].encode(), draw, _JSON, _FIRST
