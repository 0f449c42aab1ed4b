"""``repartition``: the state of a stopped fleet for more partitions."""

from __future__ import annotations

from typing import Any

import click

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
    from streams.kafka.topics import partitions_by_topic
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
        if partitions % old:
            raise ConfigurationError(
                f"there are {old} partitions, and {partitions} is no multiple of that: customers would have to come "
                f"together from several shards. Take {old * 2}, {old * 3} and so on"
            )
        if store.rebuilding() is not None:
            raise ConfigurationError("a rebuild is under way; run `segmenter rebuild` until it is done")
        counts = partitions_by_topic(settings, settings.topics.values())
        if wrong := {topic: count for topic, count in counts.items() if count not in (old, partitions)}:
            found = ", ".join(f"{topic} has {count}" for topic, count in wrong.items())
            raise ConfigurationError(f"the state is for {old} partitions, and {found}; name that number for all topics")
        _require_stopped(settings)
        before, drained = store.begin_repartition(partitions)
        if before not in (None, partitions):
            raise ConfigurationError(
                f"a repartition to {before} is under way; run: segmenter repartition --partitions {before}"
            )
        for shard in range(old):
            store.let_go(shard)
        _require_stopped(settings)
        fleet.add_partitions(settings, [topic for topic, count in counts.items() if count == old], partitions)
        if not drained:
            _drain(settings, store, old)
            store.drained()
        _move(settings, store, old, partitions)
        click.echo(f"done: the state is for {partitions} partitions; start up to {partitions} workers")
    finally:
        store.close()


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
    from streams.kafka.publisher import KafkaPublisher, OutputTopics
    from streams.processor import Clock, Shard
    from streams.repartition import Drain, learn_rest
    from streams.security import client_options
    from streams.shard_log import KafkaLog

    if not store.latest_activation():
        return  # no worker has ever been here
    publisher = KafkaPublisher(client_options(settings), OutputTopics(*settings.output_topics))
    log = KafkaLog(client_options(settings), settings.broker, settings.start_within)
    try:
        activations = Activations(store, default_policy())
        drain = Drain(store, activations, log, publisher, Clock(settings.clock), settings.batch_size)
        for number in range(old):
            drain.shard(Shard(number, old, settings.topics))
            click.echo(f"shard {number}: everything that was sent to it is folded and published")
        learn_rest(store, log, settings.samples_topic)
    finally:
        log.close()
        publisher.close()


def _move(settings: Settings, store: Any, old: int, new: int) -> None:
    from streams.kafka import fleet
    from streams.repartition import move, widen_learners

    moved = 0
    for shard in range(old):
        moved += move(store, shard, old, new)
    click.echo(f"{moved} customers have moved to {new - old} new shards")
    widen_learners(store, old, new)
    headers = [store.header(shard) for shard in range(new)]
    offsets = {
        (topic, shard): header.offsets.get(role, 0)
        for shard, header in enumerate(headers)
        for role, topic in settings.topics.items()
    }
    # Should Redis be emptied, Kafka knows that these partitions do not have all that the state was made of.
    for shard, header in enumerate(headers):
        told = header.time if header.settled is None else header.settled
        mine = {place: offset for place, offset in offsets.items() if place[1] == shard}
        fleet.commit(settings, mine, f"{-(2**62) if told is None else told} {header.lineage or old}")
    ends = {topic: [offsets[topic, shard] for shard in range(old)] for topic in settings.topics.values()}
    store.end_repartition(new, [*store.lineage(), {"partitions": old, "ends": ends}])
