"""EmbeddedBroker: librdkafka's mock cluster, which speaks the Kafka protocol on a loopback port.

Not for anything that must last: it lives in this process's memory, keeps at most 5 MiB or 100,000 batches a
partition and silently drops the oldest, and knows neither transactions nor compaction.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException, Producer

from streams.errors import ServiceUnavailable

#: Topics appear when they are first used, with the mock cluster's own number of partitions.
PARTITIONS: Final = 4


class EmbeddedBroker:
    """A context manager; the broker runs from ``start`` to ``close``."""

    def __init__(self) -> None:
        self._cluster: Producer | None = None
        self.address = ""

    def start(self) -> str:
        """Start the broker and return its address, ``127.0.0.1:PORT``."""
        self._cluster = Producer({"test.mock.num.brokers": 1, "log_level": 2})
        try:
            (broker,) = self._cluster.list_topics(timeout=10).brokers.values()
        except (KafkaException, ValueError) as error:
            raise ServiceUnavailable(f"the embedded broker did not start: {error}") from None
        self.address = f"{broker.host}:{broker.port}"
        return self.address

    def create_topics(self, topics: list[str]) -> None:
        """Make the topics exist, which the mock cluster does when it is asked about them."""
        assert self._cluster is not None, "start the broker first"  # noqa: S101
        for topic in topics:
            self._cluster.list_topics(topic, timeout=10)

    def close(self) -> None:
        """Stop the broker; what it held is gone."""
        self._cluster = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
