"""The only place that names concrete classes: what stands behind StateStore, Publisher and the consumer."""

from __future__ import annotations

import logging

from streams import memory, metrics
from streams.activations import Activations
from streams.kafka.publisher import KafkaPublisher, OutputTopics
from streams.kafka.topics import cluster_id, input_partitions
from streams.kafka.worker import SegmenterApp
from streams.security import Refusals, client_options
from streams.settings import Settings, load_settings
from streams.shards import Shards
from streams.store.opened import open_store

log = logging.getLogger(__name__)


def worker_app(settings: Settings | None = None) -> SegmenterApp:
    """A worker, ready to start, with settings from the environment if none are given.

    Raises ConfigurationError, ServiceUnavailable or FleetMismatch, each a sentence for the operator.
    """
    memory.bound()
    settings = settings or load_settings()
    policy = settings.load_policy()
    store = open_store(settings)
    partitions = input_partitions(settings)
    cluster = cluster_id(settings)
    store.register(partitions, settings.group, cluster)
    refusals = Refusals(settings)
    publisher = KafkaPublisher(client_options(settings, refusals.heard), OutputTopics(*settings.output_topics))
    metrics.PARTITIONS.set(partitions)
    activations = Activations(store, policy)
    active = activations.policy(activations.active.policy_version)
    metrics.POLICY_VERSION.set(active.version)
    if active.text != policy.text:
        log.warning(
            "policy version %d is active, and not the one that this worker was given (version %d); to activate that, "
            "use `segmenter policy apply`",
            *(active.version, policy.version),
            extra={"action": "policy"},
        )
    return SegmenterApp(settings, Shards(activations, store, publisher, settings, cluster), partitions, refusals)
