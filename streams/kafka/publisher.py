"""KafkaPublisher: segment changes, snapshots and dead letters onto their topics, with librdkafka's producer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from models.changes import CE_SOURCE, CE_TYPE
from streams.commit import OutboxEntry
from streams.errors import PublishRefused

_JSON: Final = [("content-type", b"application/json")]
#: Brokers take 1 MiB a message by default; a larger dead letter is sent without the record's value.
_LARGEST_LETTER: Final = 900_000


@dataclass(frozen=True, slots=True)
class OutputTopics:
    """Where each kind of message goes."""

    changes: str
    snapshots: str
    dead_letters: str


class _Delivery:
    """Counts the acknowledgements of a group of messages and wakes its waiter in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.done: asyncio.Future[None] = loop.create_future()
        self._missing = 0
        self._sealed = False
        self._error: KafkaError | None = None
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self._missing += 1

    def seal(self) -> None:
        """Every message has been handed over."""
        with self._lock:
            self._sealed = True
            finished = self._missing == 0
        if finished:
            self._wake()

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        with self._lock:
            self._missing -= 1
            self._error = self._error or error
            finished = self._sealed and self._missing == 0
        if finished:
            self._wake()

    def _wake(self) -> None:
        # At shutdown the loop may be gone; then nobody waits any more.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self.done.done():
            return
        if self._error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(
                PublishRefused(f"Kafka refused a message for good: {self._error.str()}; it stays in the outbox")
            )


def _headers(change_id: str, customer: str, effective_at: str) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0, Kafka protocol binding, binary content mode; see models/changes.py."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", change_id.encode()),
        ("ce_type", CE_TYPE.encode()),
        ("ce_source", CE_SOURCE.encode()),
        ("ce_subject", customer.encode()),
        ("ce_time", effective_at.encode()),
        ("content-type", b"application/json"),
    ]


class KafkaPublisher:
    """See Publisher. Messages are retried until the broker takes them; order is kept within a partition."""

    def __init__(self, servers: str, topics: OutputTopics) -> None:
        self._topics = topics
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                # Consumers of changes are keyed like the input: Kafka's own partitioner, not librdkafka's.
                "partitioner": "murmur2_random",
                "message.timeout.ms": 0,
                "linger.ms": 2,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 262_144,
                "log_level": 3,
            }
        )
        self._open = True
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
        delivery = _Delivery(asyncio.get_running_loop())
        await asyncio.to_thread(self._send, entries, delivery)
        await delivery.done

    def _send(self, entries: Sequence[OutboxEntry], delivery: _Delivery) -> None:
        for entry in entries:
            for message in self._messages(entry):
                self._produce(message, delivery)
        delivery.seal()

    def _produce(self, message: dict[str, Any], delivery: _Delivery) -> None:
        delivery.add()
        while self._open:
            try:
                self._producer.produce(on_delivery=delivery, **message)
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                delivery(error.args[0], None)
                return
            else:
                return

    def _messages(self, entry: OutboxEntry) -> Iterator[dict[str, Any]]:
        topics, wire, withheld = self._topics, entry.wire, set(entry.withheld)
        changes = zip(wire.values, wire.ids, wire.customers, wire.effective_at, strict=True)
        for place, (value, change_id, customer, effective_at) in enumerate(changes):
            if place not in withheld:
                headers = _headers(change_id, customer, effective_at)
                yield {"topic": topics.changes, "key": customer.encode(), "value": value, "headers": headers}
        # A move that is withheld is a move all the same: snapshots show where each customer is now.
        for customer, labels in wire.snapshots():
            yield {"topic": topics.snapshots, "key": customer.encode(), "value": labels, "headers": _JSON}
        for letter in entry.dead_letters:
            value = orjson.dumps(letter)
            if len(value) > _LARGEST_LETTER:
                reason = f"{letter['reason']} (the value is too large to copy; read it at its topic and offset)"
                value = orjson.dumps({**letter, "reason": reason, "key": None, "value": None, "headers": []})
            yield {"topic": topics.dead_letters, "value": value, "headers": _JSON}
