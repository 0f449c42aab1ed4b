"""What a run stands on: a fresh broker with its topics, and a fresh Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import redis
from confluent_kafka import Consumer, TopicPartition

from streams.embedded.stack import EmbeddedStack
from streams.kafka.topics import create
from streams.settings import Settings
from tests.bench.workload import PARTITIONS
from tests.support.real_kafka import RealKafka
from tests.support.real_redis import RealRedis

CHANGES = "segment-changes"


class BenchError(RuntimeError):
    """The run cannot be used: something was lost, doubled, different or too late."""


@dataclass
class Servers:
    """Where the broker and Redis are, and what is asked of them from outside."""

    broker: str
    redis_url: str
    redis: redis.Redis

    def __post_init__(self) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": self.broker, "group.id": "bench", "enable.auto.commit": False, "log_level": 0}
        )

    def ends(self, topic: str = CHANGES) -> list[int]:
        """The next offset of each partition."""
        return [
            self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
            for partition in range(PARTITIONS)
        ]

    def changes(self, start: Sequence[int]) -> list[dict[str, Any]]:
        """Every change from these offsets on."""
        ends = self.ends()
        self._consumer.assign([TopicPartition(CHANGES, p, at) for p, at in enumerate(start)])
        found: list[dict[str, Any]] = []
        while len(found) < sum(ends) - sum(start):
            messages = self._consumer.consume(10_000, timeout=10)
            if not messages:
                raise BenchError("the changes could not be read back")
            for message in messages:
                if message.error() is not None:
                    raise BenchError(message.error().str())
                found.append(orjson.loads(message.value() or b""))
        self._consumer.unassign()
        return found

    def close(self) -> None:
        """Give the connections back."""
        self._consumer.close()
        self.redis.close()


@contextmanager
def real_servers() -> Iterator[Servers]:
    """A real Apache Kafka, one broker, and a real Redis that syncs its append-only file each second."""
    with RealKafka() as kafka, RealRedis() as store:
        create(Settings().model_copy(update={"broker": kafka.address}), PARTITIONS, replication=1)
        yield from _servers(kafka.address, store.url)


@contextmanager
def embedded_servers() -> Iterator[Servers]:
    """librdkafka's mock cluster, which keeps 5 MiB a partition, and a Redis without persistence."""
    with EmbeddedStack(Settings()) as stack:
        yield from _servers(stack.broker.address, stack.redis.url)


def _servers(broker: str, url: str) -> Iterator[Servers]:
    servers = Servers(broker, url, redis.Redis.from_url(url))
    try:
        yield servers
    finally:
        servers.close()
