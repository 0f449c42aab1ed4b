"""The only place that names concrete classes: what stands behind StateStore, Publisher and the consumer."""

from __future__ import annotations

from models.segmenter import Segmenter
from streams import metrics
from streams.errors import ServiceUnavailable, StoreUnavailable
from streams.kafka.publisher import KafkaPublisher, OutputTopics
from streams.kafka.topics import input_partitions
from streams.kafka.worker import SegmenterApp
from streams.processor import BatchProcessor, Clock, Shard
from streams.settings import Settings, load_settings
from streams.shards import Shards
from streams.store.redis import RedisStore


def open_store(settings: Settings) -> RedisStore:
    """Redis, reached. Raises ServiceUnavailable."""
    store = RedisStore(settings.redis.get_secret_value(), settings.namespace)
    try:
        store.ping()
    except StoreUnavailable as error:
        raise ServiceUnavailable(f"{error}; check SEGMENTER_REDIS and that Redis is running") from None
    return store


def worker_app(settings: Settings | None = None) -> SegmenterApp:
    """A worker, ready to start, with settings from the environment if none are given.

    Raises ConfigurationError, ServiceUnavailable or FleetMismatch, each a sentence for the operator.
    """
    settings = settings or load_settings()
    policy = settings.load_policy()
    store = open_store(settings)
    partitions = input_partitions(settings)
    store.register(partitions, settings.group)
    publisher = KafkaPublisher(
        settings.broker,
        OutputTopics(settings.changes_topic, settings.snapshots_topic, settings.dead_letters_topic),
    )
    segmenter, clock = Segmenter(policy), Clock(settings.clock)
    metrics.POLICY_VERSION.set(policy.version)

    def processor(shard: Shard) -> BatchProcessor:
        return BatchProcessor(shard, segmenter, store, clock)

    return SegmenterApp(settings, Shards(processor, store, publisher, settings), partitions)
