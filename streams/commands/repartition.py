"""``repartition``: the state of a stopped fleet for more partitions."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import click

from models.instants import NEVER
from streams.commands.options import TOPICS, settings_from, settings_options
from streams.errors import ConfigurationError
from streams.settings import Settings


@click.command()
@click.option(
    "--partitions", type=click.IntRange(1, 10_000), required=True, help="how many there are to be: a multiple of now"
)
@settings_options("broker", "redis", "namespace", "group", "clock", "batch_size", "start_within", *TOPICS)
def repartition(partitions: int, **given: Any) -> None:
    """Give the input topics more partitions, and each customer's state to the shard where their events go now.

    Stop all workers first, and the producers, which may not notice at once that there are more partitions: what they
    put onto the wrong one becomes a dead letter, which `segmenter dead-letters retry` mends. If this is interrupted,
    run it again; workers do not start before it is done. What has been published stays as it is.
    """
    from streams.kafka import fleet
    from streams.kafka.topics import cluster_id, partitions_by_topic
    from streams.store.opened import open_upkeep

    settings = settings_from(given)
    store = open_upkeep(settings)
    try:
        old = store.partitions()
        if old is None:
            raise ConfigurationError(
                f"namespace {settings.namespace!r} holds no state; there is nothing to repartition"
            )
        if old == partitions:
            click.echo(f"the state is for {partitions} partitions already")
            return
        if store.rebuilding() is not None:
            raise ConfigurationError("a rebuild is under way; run `segmenter rebuild` until it is done")
        before = store.repartitioning()
        if before not in (None, partitions):
            raise ConfigurationError(
                f"a repartition to {before} is under way; run: segmenter repartition --partitions {before}"
            )
        store.require_own(cluster_id(settings), settings.group)
        counts = partitions_by_topic(settings, settings.topics.values())
        require_possible(old, partitions, counts)
        _require_stopped(settings)
        # Whatever Kafka refuses, it refuses before workers are kept from starting.
        fleet.add_partitions(settings, [topic for topic, count in counts.items() if count < partitions], partitions)
        _, drained = store.begin_repartition(partitions)
        for shard in range(old):
            store.let_go(shard)
        _require_stopped(settings)
        if store.latest_activation():
            if not drained:
                _drain(settings, store, old)
                store.drained()
            _move(settings, store, old, partitions)
        else:
            store.end_repartition(partitions, store.lineage())  # no worker has ever been here
        click.echo(f"done: the state is for {partitions} partitions; start up to {partitions} workers")
    finally:
        store.close()


def require_possible(old: int, wanted: int, counts: Mapping[str, int]) -> None:
    """Raise ConfigurationError unless state for ``old`` partitions can become state for those that are wanted.

    Topics that have been given another number meanwhile can be given more, as long as that is a multiple of ``old``.
    """
    if missing := [topic for topic, count in counts.items() if not count]:
        raise ConfigurationError(f"Kafka has no topic {', '.join(missing)}; run: segmenter topics create")
    most = max(counts.values())
    found = ", ".join(f"{topic} has {count}" for topic, count in counts.items() if count != old)
    if min(counts.values()) < old:
        raise ConfigurationError(
            f"the state is for {old} partitions, and {found}: a topic was recreated. Restore it; or, to start over, "
            "use another SEGMENTER_NAMESPACE and SEGMENTER_GROUP"
        )
    if wanted % old == 0 and wanted >= most:
        return
    least = max(2, -(-most // old)) * old
    why = (
        f"{wanted} is no multiple of that: customers would have to come together from several shards"
        if wanted % old
        else f"{found} already, and Kafka takes none away"
    )
    grown = (
        f" ({found} already: what lies on the wrong partition by then becomes a dead letter, and `segmenter "
        "dead-letters retry --code wrong_partition` puts it where it belongs, once workers run again)"
        if most % old
        else ""
    )
    raise ConfigurationError(
        f"the state is for {old} partitions, and {why}. Take {least}, or another multiple of {old} above it{grown}; "
        "or start over with all events on new topics, another SEGMENTER_NAMESPACE and SEGMENTER_GROUP"
    )


def _require_stopped(settings: Settings) -> None:
    from streams.kafka import fleet

    if running := fleet.members(settings):
        raise ConfigurationError(
            f"{running} workers of group {settings.group} run; stop all of them first, and wait until Kafka has "
            "noticed: after a crash that takes SEGMENTER_SESSION_TIMEOUT"
        )


def _drain(settings: Settings, store: Any, old: int) -> None:
    from models.policy import default_policy
    from streams.activations import Activations
    from streams.kafka import fleet
    from streams.kafka.publisher import KafkaPublisher, OutputTopics
    from streams.processor import Clock, Shard
    from streams.repartition import Drain
    from streams.security import client_options
    from streams.shard_log import KafkaLog

    commits = fleet.committed(settings, old)
    publisher = KafkaPublisher(client_options(settings), OutputTopics(*settings.output_topics))
    log = KafkaLog(client_options(settings), settings.broker, settings.start_within)
    try:
        drain = Drain(
            store,
            Activations(store, default_policy()),
            log,
            publisher,
            Clock(settings.clock),
            settings.batch_size,
            commits,
            settings.samples_topic,
        )
        for number in drain.every([Shard(number, old, settings.topics) for number in range(old)]):
            click.echo(f"shard {number}: everything that was sent to it is folded and published")
    finally:
        log.close()
        publisher.close()


def _move(settings: Settings, store: Any, old: int, new: int) -> None:
    from streams.kafka import fleet
    from streams.kafka.commits import Told
    from streams.repartition import move, widen_learners

    token, moved = secrets.token_hex(8), 0
    for shard in range(new):
        store.claim(shard, token)
    for shard in range(old):
        moved += move(store, shard, old, new, token)
    click.echo(f"{moved} customers have moved to {new - old} new shards")
    widen_learners(store, old, new)
    before = fleet.committed(settings, old)
    headers = [store.header(shard) for shard in range(new)]
    # Should Redis be emptied, Kafka knows that these partitions do not have all that the state was made of.
    commits: dict[tuple[str, int], tuple[int, Told]] = {}
    for shard, header in enumerate(headers):
        settled = header.time if header.settled is None else header.settled
        known = (before[topic, shard % old][1].until for topic in settings.topics.values())
        told = Told(max(NEVER if settled is None else settled, *known), header.lineage or str(old))
        commits |= {(topic, shard): (header.offsets.get(role, 0), told) for role, topic in settings.topics.items()}
    fleet.commit(settings, commits)
    ends = {topic: [commits[topic, shard][0] for shard in range(old)] for topic in settings.topics.values()}
    store.end_repartition(new, [*store.lineage(), {"partitions": old, "ends": ends}])
