"""What tests put onto topics and read from them, with a client of their own."""

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from models.partitioner import partition_of

CHANGES, SNAPSHOTS, DEAD_LETTERS = "segment-changes", "customer-segments", "dead-letters"
TOPIC_OF_KIND = {
    "purchase": "purchases",
    "refund": "purchases",
    "tick": "purchases",
    "signup": "signups",
    "profile": "signups",
    "survey": "signups",
    "erasure": "erasures",
}
_WITHIN = 10.0

#: customer_id, effective_at, from, to, cause, event_id: what a change says, as the batch computation writes it.
Move = tuple[str, str, str, str, str, str]


class Stored(NamedTuple):
    """A record as it lies on a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp: int


class Topics:
    """One broker's topics, by their usual names though each may have a prefix.

    A context manager, which keeps one consumer and one producer.
    """

    def __init__(self, servers: str, partitions: int = 4, prefix: str = "") -> None:
        self.servers = servers
        self.partitions = partitions
        self._prefix = prefix

    def __enter__(self) -> "Topics":
        self._consumer = Consumer(
            {
                "bootstrap.servers": self.servers,
                "group.id": f"tests-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "log_level": 0,
            }
        )
        self._producer = Producer({"bootstrap.servers": self.servers, "enable.idempotence": True, "log_level": 0})
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
        self._producer.purge()

    def ends(self, topic: str) -> dict[int, int]:
        """The end of each partition's log."""
        topic = self._prefix + topic
        count = len(self._consumer.list_topics(topic, timeout=_WITHIN).topics[topic].partitions)
        return {
            partition: self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_WITHIN)[1]
            for partition in range(count)
        }

    def size(self, topic: str) -> int:
        """How many records a topic that keeps everything has."""
        return sum(self.ends(topic).values())

    def read(self, topic: str, start: Mapping[int, int] | None = None) -> list[Stored]:
        """Every record from ``start`` (the beginning) to the present end, each partition's in order."""
        first = start or {}
        ends = {partition: end for partition, end in self.ends(topic).items() if end > first.get(partition, 0)}
        name = self._prefix + topic
        self._consumer.assign([TopicPartition(name, partition, first.get(partition, 0)) for partition in ends])
        found: list[Stored] = []
        while ends:
            message = self._consumer.poll(_WITHIN)
            assert message is not None, f"{topic} does not answer"
            error = message.error()
            assert error is None or error.code() == KafkaError._PARTITION_EOF, error
            if error is None:
                found.append(_stored(message))
            if error is not None or message.offset() + 1 >= ends.get(message.partition(), 0):
                ends.pop(message.partition(), None)
        self._consumer.unassign()
        return found

    def changes(self) -> list[dict[str, Any]]:
        """Every segment change with its repeats, as a subscriber gets them."""
        return [json.loads(record.value or b"null") for record in self.read(CHANGES)]

    def dead_letters(self) -> list[dict[str, Any]]:
        """Everything refused."""
        return [json.loads(record.value or b"null") for record in self.read(DEAD_LETTERS)]

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp: int = 0,
    ) -> None:
        """Produce one record, where Kafka's own partitioner puts its key; ``timestamp`` in ms, 0 for now."""
        self._producer.produce(
            self._prefix + topic,
            value=value,
            key=key,
            partition=partition_of(key or b"", self.partitions) if partition is None else partition,
            headers=list(headers),
            timestamp=timestamp,
        )
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has everything that was sent."""
        assert self._producer.flush(_WITHIN) == 0, "the broker did not take every record"

    def put(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Produce events in order, each on its kind's topic, keyed; a tick goes to every partition."""
        for event in events:
            topic, value = TOPIC_OF_KIND[event["kind"]], json.dumps(event).encode()
            if event["kind"] == "tick":
                for partition in range(self.partitions):
                    self.send(topic, value, partition=partition)
            else:
                self.send(topic, value, event["customer_id"].encode())
        self.flush()


def _stored(message: Message) -> Stored:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    headers = [(name, _bytes(value)) for name, value in message.headers() or []]
    return Stored(partition, offset, _bytes(message.key()), _bytes(message.value()), headers, message.timestamp()[1])


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def distinct(changes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Changes without those whose id came before."""
    first: dict[str, Mapping[str, Any]] = {}
    for change in changes:
        first.setdefault(change["change_id"], change)
    return list(first.values())


def moves(changes: Iterable[Mapping[str, Any]]) -> Counter[Move]:
    """What changes say, as a multiset; null is ``none``, and no event is empty."""
    return Counter(
        (
            change["customer_id"],
            change["effective_at"],
            change["from"] or "none",
            change["to"] or "none",
            change["cause"],
            change["event_id"] or "",
        )
        for change in changes
    )


def out_of_order(changes: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Changes that are not the next of their customer's, in the order in which they were consumed."""
    reached: Counter[str] = Counter()
    for change in changes:
        customer = change["customer_id"]
        if change["sequence"] != reached[customer] + 1:
            yield change
        reached[customer] = change["sequence"]


def undecided(changes: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Changes by id, without when they were decided, and whether they were history at the time."""
    left_out = ("decided_at", "backfill")
    return {c["change_id"]: {name: value for name, value in c.items() if name not in left_out} for c in changes}
