"""A fleet's consumer group and input topics, as whoever looks after the fleet changes them while it is stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streams.errors import ServiceUnavailable
from streams.kafka.commits import Told
from streams.kafka.topics import admin_client
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


def committed(settings: Settings, partitions: int) -> dict[tuple[str, int], tuple[int | None, Told]]:
    """The group's commit of each input topic's partitions, None if there is none. Raises ServiceUnavailable."""
    # Not with librdkafka's client, which reads beyond the end of a commit's metadata.
    from kafka import TopicPartition as Place

    places = [Place(topic, each) for topic in settings.topics.values() for each in range(partitions)]
    with admin_client(settings, "say how far the group is") as admin:
        stored = admin.list_group_offsets({settings.group: places})[settings.group]
    found: dict[tuple[str, int], tuple[int | None, Told]] = {}
    for place in places:
        commit = stored.get(place)
        known = commit is not None and commit.offset >= 0
        found[place.topic, place.partition] = (commit.offset, Told.parse(commit.metadata)) if known else (None, Told())
    return found


def commit(settings: Settings, commits: Mapping[tuple[str, int], tuple[int, Told]]) -> None:
    """Commit offsets of topics' partitions for the group, which must have no member. Raises ServiceUnavailable."""
    consumer = Consumer({**client_options(settings), "group.id": settings.group, "enable.auto.commit": False})
    try:
        places = [
            TopicPartition(topic, partition, offset, metadata=told.text())
            for (topic, partition), (offset, told) in commits.items()
        ]
        for place in consumer.commit(offsets=places, asynchronous=False) or ():
            if place.error is not None:
                raise KafkaException(place.error)
    except KafkaException as error:
        raise _unavailable(settings, "take the offsets of the group", error) from None
    finally:
        consumer.close()


def _unavailable(settings: Settings, what: str, error: KafkaException) -> ServiceUnavailable:
    return ServiceUnavailable(f"Kafka at {settings.broker} did not {what}: {error.args[0].str()}")
