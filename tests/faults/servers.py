"""Whose Kafka and Redis a run has: shared by all lanes and left unharmed, the lane's, or its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from tests.support.real_kafka import RealKafka
from tests.support.real_redis import RealRedis

#: Lets workers have sessions of two seconds, so that runs are short.
KAFKA = {"group.min.session.timeout.ms": "1000"}


@dataclass
class Servers:
    """A Kafka and a Redis, with what workers must be told to use them besides their addresses."""

    kafka: Any
    redis: Any
    settings: dict[str, str] = field(default_factory=dict)
    replication: int = 1

    def client(self) -> Any:
        """A Redis client for tests."""
        return redis.Redis.from_url(self.redis.url)


class Shared:
    """A Kafka and a Redis for all runs that do them no harm; started when first asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._servers: Servers | None = None

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def servers(self) -> Servers:
        """The servers. Raises KafkaUnavailable or ServiceUnavailable if the machine cannot run them."""
        with self._lock:
            if self._servers is None:
                memory = self._stack.enter_context(RealRedis())
                self._servers = Servers(self._stack.enter_context(RealKafka(KAFKA)), memory)
            return self._servers


class Lane:
    """What runs after one another share: a Kafka that faults may harm, as long as it is left running."""

    def __init__(self, shared: Shared, number: int = 0) -> None:
        self.shared = shared
        self.number = number
        self._kafka: RealKafka | None = None

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def kafka(self) -> RealKafka:
        """The lane's Kafka, started if it is not running."""
        if self._kafka is not None and not self._kafka.running:
            self.discard()
        if self._kafka is None:
            kafka = RealKafka(KAFKA)
            kafka.start()
            self._kafka = kafka
        return self._kafka

    def discard(self) -> None:
        """Have the next run that needs one begin with another Kafka."""
        if self._kafka is not None:
            self._kafka.close()
        self._kafka = None


Provider = Callable[[Lane], AbstractContextManager[Servers]]
SERVERS: dict[str, Provider] = {}
#: Those without which there is nothing to test. A machine may lack what others need.
PLAIN = ("shared", "redis", "kafka", "own")


def servers(name: str) -> Callable[[Callable[[Lane], Iterator[Servers]]], None]:
    """Register the decorated generator as the servers called ``name`` in Fault."""

    def register(provide: Callable[[Lane], Iterator[Servers]]) -> None:
        SERVERS[name] = contextmanager(provide)

    return register


@servers("shared")
def _shared(lane: Lane) -> Iterator[Servers]:
    """Shared by all lanes; must not be harmed."""
    yield lane.shared.servers


@servers("redis")
def _own_redis(lane: Lane) -> Iterator[Servers]:
    """A Redis for this run, with an append-only file."""
    with RealRedis() as own:
        yield Servers(lane.shared.servers.kafka, own)


@servers("kafka")
def _own_kafka(lane: Lane) -> Iterator[Servers]:
    """The lane's Kafka, which may be killed as long as it is started again."""
    yield Servers(lane.kafka(), lane.shared.servers.redis)


@servers("own")
def _own(lane: Lane) -> Iterator[Servers]:
    """Both of the run's own, as far as the next run is concerned."""
    with RealRedis() as own:
        yield Servers(lane.kafka(), own)
