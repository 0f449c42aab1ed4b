"""The topics: what they must be, whether they are, and creating them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaException, Producer

from streams.errors import ConfigurationError, ServiceUnavailable
from streams.settings import Settings

_FOREVER: Final = "-1"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic as ``topics create`` makes it."""

    name: str
    partitions: int
    config: dict[str, str]


def plan(settings: Settings, partitions: int) -> list[TopicPlan]:
    """Every topic of the system.

    Input is kept for good, so that state can be rebuilt from it, and stamped by the broker, whose clock the
    ingestion clock is. Samples are kept for good, too, in one partition: what is learned depends on their order.
    """
    source = {"retention.ms": _FOREVER, "retention.bytes": _FOREVER, "message.timestamp.type": "LogAppendTime"}
    return [
        *(TopicPlan(name, partitions, source) for name in settings.topics.values()),
        TopicPlan(settings.changes_topic, partitions, {"retention.ms": str(30 * 86_400_000)}),
        TopicPlan(settings.snapshots_topic, partitions, {"cleanup.policy": "compact"}),
        TopicPlan(settings.dead_letters_topic, 1, {"retention.ms": str(90 * 86_400_000)}),
        TopicPlan(settings.samples_topic, 1, {"retention.ms": _FOREVER, "retention.bytes": _FOREVER}),
    ]


def partitions_by_topic(servers: str, topics: Iterable[str], within: float) -> dict[str, int]:
    """How many partitions each topic has, 0 if it does not exist. Raises ServiceUnavailable."""
    client = Producer({"bootstrap.servers": servers, "log_level": 0, "socket.connection.setup.timeout.ms": 2000})
    counts = {}
    try:
        for topic in topics:
            found = client.list_topics(topic, timeout=within).topics[topic]
            counts[topic] = 0 if found.error is not None else len(found.partitions)
    except KafkaException as error:
        raise ServiceUnavailable(
            f"Kafka at {servers} did not answer within {within:g} s ({error.args[0].str()}); "
            "check SEGMENTER_BROKER and that the broker is running"
        ) from None
    return counts


def input_partitions(settings: Settings) -> int:
    """How many partitions every input topic has.

    Raises ServiceUnavailable if Kafka cannot be reached, ConfigurationError if a topic is missing or the input
    topics are not co-partitioned.
    """
    inputs = list(settings.topics.values())
    counts = partitions_by_topic(settings.broker, [*inputs, *settings.output_topics], settings.start_within)
    missing = [topic for topic, count in counts.items() if not count]
    if missing:
        raise ConfigurationError(
            f"Kafka at {settings.broker} has no topic {', '.join(missing)}; run: segmenter topics create"
        )
    _require_copartitioned({topic: counts[topic] for topic in inputs})
    return counts[inputs[0]]


def _require_copartitioned(counts: dict[str, int]) -> None:
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
        raise ConfigurationError(
            f"the input topics must have the same number of partitions, so that a customer's events meet: {found}"
        )


def create(settings: Settings, partitions: int, replication: int) -> list[tuple[str, bool]]:
    """Create what is missing; returns each topic and whether it is new.

    Raises ConfigurationError if topics that exist are not what they must be, ServiceUnavailable.
    """
    wanted = plan(settings, partitions)
    counts = partitions_by_topic(settings.broker, [each.name for each in wanted], settings.start_within)
    inputs = set(settings.topics.values())
    _require_copartitioned({topic: count or partitions for topic, count in counts.items() if topic in inputs})
    missing = [each for each in wanted if not counts[each.name]]
    if missing:
        _create(settings, missing, replication)
    return [(each.name, each in missing) for each in wanted]


def _create(settings: Settings, topics: list[TopicPlan], replication: int) -> None:
    # Imported late: only this command needs it.
    from kafka.admin import KafkaAdminClient, NewTopic
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    admin: Any = None
    try:
        admin = KafkaAdminClient(
            bootstrap_servers=settings.broker, bootstrap_timeout_ms=int(settings.start_within * 1000)
        )
        for topic in topics:
            new = NewTopic(
                name=topic.name,
                num_partitions=topic.partitions,
                replication_factor=replication,
                topic_configs=topic.config,
            )
            try:
                admin.create_topics([new])
            except TopicAlreadyExistsError:
                continue
    except KafkaError as error:
        raise ServiceUnavailable(f"Kafka at {settings.broker} did not create the topics: {error}") from None
    finally:
        if admin is not None:
            admin.close()
