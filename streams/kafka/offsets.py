"""Where the logs of topics begin and end."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.errors import ServiceUnavailable
from streams.kafka.topics import partitions_by_topic
from streams.security import client_options
from streams.settings import Settings


def log_ends(settings: Settings, topics: Iterable[str]) -> dict[tuple[str, int], tuple[int, int]]:
    """The first and the next offset of every partition. Raises ServiceUnavailable."""
    names, within = list(topics), settings.start_within
    counts = partitions_by_topic(settings, names)
    # Nothing is read or committed, so nobody sees the group.
    consumer = Consumer({**client_options(settings), "group.id": f"segmenter-cli-{uuid.uuid4().hex}"})
    try:
        return {
            (topic, partition): consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=within)
            for topic in names
            for partition in range(counts[topic])
        }
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka at {settings.broker} did not answer: {error.args[0].str()}") from None
    finally:
        consumer.close()
