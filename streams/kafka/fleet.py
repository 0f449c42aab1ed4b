"""A fleet's consumer group and input topics, as whoever looks after the fleet changes them while it is stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streams.errors import ServiceUnavailable
from streams.security import client_options
from streams.settings import Settings

_WITHIN: Final = 30.0


def members(settings: Settings) -> int:
    """How many workers the fleet's group has. Raises ServiceUnavailable."""
    try:
        # Named, for the answer does not outlive the client that asked.
        client = AdminClient(client_options(settings))
        asked = client.describe_consumer_groups([settings.group], request_timeout=settings.start_within)
        return len(asked[settings.group].result().members)
    except KafkaException as error:
        if error.args[0].name() == "GROUP_ID_NOT_FOUND":
            return 0
        raise _unavailable(settings, "say who is in the group", error) from None


def add_partitions(settings: Settings, topics: Iterable[str], partitions: int) -> None:
    """Give topics more partitions. Raises ServiceUnavailable."""
    wanted = [NewPartitions(topic, partitions) for topic in topics]
    if not wanted:
        return
    client = AdminClient(client_options(settings))
    try:
        for answer in client.create_partitions(wanted).values():
            answer.result(_WITHIN)
    except KafkaException as error:
        raise _unavailable(settings, f"give the input topics {partitions} partitions", error) from None


def commit(settings: Settings, offsets: Mapping[tuple[str, int], int], metadata: str) -> None:
    """Commit offsets of topics' partitions for the group, which must have no member. Raises ServiceUnavailable."""
    consumer = Consumer({**client_options(settings), "group.id": settings.group, "enable.auto.commit": False})
    try:
        places = [
            TopicPartition(topic, partition, offset, metadata=metadata)
            for (topic, partition), offset in offsets.items()
        ]
        consumer.commit(offsets=places, asynchronous=False)
    except KafkaException as error:
        raise _unavailable(settings, "take the offsets of the group", error) from None
    finally:
        consumer.close()


def _unavailable(settings: Settings, what: str, error: KafkaException) -> ServiceUnavailable:
    return ServiceUnavailable(f"Kafka at {settings.broker} did not {what}: {error.args[0].str()}")
