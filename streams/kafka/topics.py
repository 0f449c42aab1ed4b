"""The topics: what they must be, whether they are, and creating them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from streams.errors import ConfigurationError, ServiceUnavailable
from streams.security import Refusals, admin_options, client_options
from streams.settings import Settings

_FOREVER: Final = "-1"
#: How the id of every mock cluster begins.
_MOCK: Final = "mockCluster"
#: Seconds.
_LOOK_EVERY: Final = 0.05
#: Seconds in which librdkafka tells why a connection failed.
_HEARD_WITHIN: Final = 0.2


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


def partitions_by_topic(settings: Settings, topics: Iterable[str]) -> dict[str, int]:
    """How many partitions each topic has, 0 if it does not exist. Raises ServiceUnavailable."""
    asked = _Metadata(settings)
    counts = {}
    for topic in topics:
        found = asked.of(topic).topics[topic]
        if found.error is not None and found.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise ServiceUnavailable(
                f"Kafka at {settings.broker} forbids this login to see the topic {topic}; "
                "docs/SECURITY.md lists what each login needs"
            )
        counts[topic] = 0 if found.error is not None else len(found.partitions)
    return counts


def cluster_id(settings: Settings) -> str:
    """The id of the Kafka cluster, empty if it has none. Raises ServiceUnavailable."""
    # One topic, because a broker may have very many.
    return str(_Metadata(settings).of(settings.purchases_topic).cluster_id or "")


def require_lasting(settings: Settings, what: str) -> None:
    """Raise ConfigurationError if this is the embedded broker, which has no transactions; or ServiceUnavailable."""
    if cluster_id(settings).startswith(_MOCK):
        raise ConfigurationError(
            f"Kafka at {settings.broker} is the embedded broker of `segmenter stack` or `demo` (a mock cluster of "
            f"librdkafka), which has no transactions; {what} takes a real Kafka"
        )


class _Metadata:
    """Asks a broker until it answers; after a second it is looked whether it has refused us, which is told at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._refusals = Refusals(settings)
        options = client_options(settings, self._refusals.heard)
        try:
            self._client = Producer({**options, "socket.connection.setup.timeout.ms": 2000})
        except KafkaException as error:
            raise ConfigurationError(
                f"the settings for Kafka cannot be used: {error.args[0].str()}; see SEGMENTER_KAFKA_CA, "
                "SEGMENTER_KAFKA_CERTIFICATE and SEGMENTER_KAFKA_KEY"
            ) from None

    def of(self, topic: str) -> Any:
        """The topic's, as confluent-kafka has it. Raises ServiceUnavailable."""
        within = self._settings.start_within
        deadline, part = time.monotonic() + within, min(1.0, within / 2)
        while part > 0:
            try:
                return self._client.list_topics(topic, timeout=part)
            except KafkaException as error:
                reason = error.args[0].str()
                self._client.poll(_HEARD_WITHIN)
                self._refusals.check()
            part = deadline - time.monotonic()
        raise ServiceUnavailable(
            f"Kafka at {self._settings.broker} did not answer within {within:g} s ({reason}){self._refusals.hint()}; "
            "check SEGMENTER_BROKER and that the broker is running, and speaks as SEGMENTER_KAFKA_SECURITY says: "
            f"{self._settings.kafka_security}"
        )


def input_partitions(settings: Settings) -> int:
    """How many partitions every input topic has.

    Raises ServiceUnavailable if Kafka cannot be reached, ConfigurationError if a topic is missing or the input
    topics are not co-partitioned.
    """
    inputs = list(settings.topics.values())
    counts = partitions_by_topic(settings, [*inputs, *settings.output_topics])
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
    counts = partitions_by_topic(settings, [each.name for each in wanted])
    inputs = set(settings.topics.values())
    _require_copartitioned({topic: count or partitions for topic, count in counts.items() if topic in inputs})
    missing = [each for each in wanted if not counts[each.name]]
    if missing:
        _create(settings, missing, replication)
        _await(settings, [each.name for each in missing])
    return [(each.name, each in missing) for each in wanted]


def _await(settings: Settings, topics: list[str]) -> None:
    """Wait until the broker shows what it has created, so that a worker may be started at once."""
    deadline = time.monotonic() + settings.start_within
    while not all(partitions_by_topic(settings, topics).values()):
        if time.monotonic() > deadline:
            raise ServiceUnavailable(
                f"Kafka at {settings.broker} has created the topics, and does not show them within "
                f"{settings.start_within:g} s; look at its log"
            )
        time.sleep(_LOOK_EVERY)


@contextmanager
def admin_client(settings: Settings, what: str) -> Iterator[Any]:
    """kafka-python's KafkaAdminClient. Raises ServiceUnavailable, which says that Kafka did not do ``what``."""
    # Imported late: only operators' commands need it.
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError as Refused

    try:
        client = KafkaAdminClient(**admin_options(settings), bootstrap_timeout_ms=int(settings.start_within * 1000))
        try:
            yield client
        finally:
            client.close()
    except Refused as error:
        raise ServiceUnavailable(f"Kafka at {settings.broker} did not {what}: {error}") from None


def _create(settings: Settings, topics: list[TopicPlan], replication: int) -> None:
    from kafka.admin import NewTopic
    from kafka.errors import TopicAlreadyExistsError

    with admin_client(settings, "create the topics") as admin:
        for topic in topics:
            new = NewTopic(
                name=topic.name,
                num_partitions=topic.partitions,
                replication_factor=replication,
                topic_configs=topic.config,
            )
            with suppress(TopicAlreadyExistsError):
                admin.create_topics([new])
