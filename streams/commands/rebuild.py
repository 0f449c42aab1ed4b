"""``rebuild``: all state once more from Kafka, on a running fleet, without a change being published twice."""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

import click

from streams.commands.options import TOPICS, settings_from, settings_options
from streams.errors import ConfigurationError, StoreUnavailable
from streams.settings import Settings

#: Seconds.
_LOOK_EVERY: Final = 0.5
_SAY_EVERY: Final = 5.0
_IDLE_AFTER: Final = 20.0


@click.command()
@click.option("--yes", is_flag=True, help="do it; else it is only said what would be done")
@click.option("--restart", is_flag=True, help="begin again, though a rebuild is under way")
@click.option("--no-wait", is_flag=True, help="do not wait until the workers are done")
@settings_options("broker", "redis", "namespace", "start_within", *TOPICS)
def rebuild(yes: bool, restart: bool, no_wait: bool, **given: Any) -> None:
    """Forget all state and have the running workers build it again from Kafka.

    Changes that were published are not published again; what happens meanwhile is published afterwards. To run it
    again while a rebuild is under way goes on with that one.
    """
    from streams.kafka.topics import cluster_id
    from streams.rebuild import Estimate, done
    from streams.store.opened import open_upkeep

    settings = settings_from(given)
    store = open_upkeep(settings)
    try:
        partitions = store.partitions()
        if partitions is None:
            raise ConfigurationError(f"namespace {settings.namespace!r} holds no state; there is nothing to rebuild")
        store.require_own(cluster_id(settings))
        _require_whole_history(settings, partitions, store.lineage())
        name = store.rebuilding()
        if name is None or restart:
            if not yes:
                raise ConfigurationError(
                    f"this would forget the state of all {partitions} shards of namespace {settings.namespace!r} and "
                    "have the running workers build it again from the first record on. Until they are done, customers "
                    "and segments are incomplete, and no change is published. To do it, add --yes"
                )
            name = store.begin_rebuild(uuid.uuid4().hex, again=restart)
            click.echo(f"the state of {partitions} shards is built again")
        else:
            click.echo("a rebuild is under way; going on with it (--restart begins again)")
        _rewind_all(store, partitions, name)
        if no_wait and not done(store, partitions, name).complete:
            click.echo("the workers build it; to see how far they are, run: segmenter rebuild")
            return
        _follow(store, partitions, name, Estimate())
        store.end_rebuild(name)
        click.echo("done: every shard is where it was")
    finally:
        store.close()


def _require_whole_history(settings: Settings, partitions: int, lineage: list[dict[str, Any]]) -> None:
    """Raise ConfigurationError unless Kafka holds, for each shard, everything that its state was made of."""
    from streams.kafka.offsets import log_ends
    from streams.kafka.topics import input_partitions

    if lineage:
        raise ConfigurationError(
            f"the topics had {lineage[-1]['partitions']} partitions before they had {partitions}: what happened then "
            "lies on other partitions than it would now, and cannot be read again in its order. Restore Redis from a "
            "backup instead; or put all events onto new topics, with another SEGMENTER_NAMESPACE and SEGMENTER_GROUP"
        )
    found = input_partitions(settings)
    if found != partitions:
        raise ConfigurationError(
            f"the state has {partitions} shards, and the input topics have {found} partitions; run: "
            f"segmenter repartition --partitions {found}"
        )
    ends = log_ends(settings, settings.topics.values())
    gone = [(topic, partition, first) for (topic, partition), (first, _) in sorted(ends.items()) if first > 0]
    if gone:
        topic, partition, first = gone[0]
        raise ConfigurationError(
            f"Kafka has deleted the records of {topic}, partition {partition}, below offset {first}; state that is "
            "built without them would be wrong. Nothing was done. Set retention.ms=-1 on the input topics, so that it "
            "is possible for what comes"
        )


def _rewind_all(store: Any, partitions: int, name: str) -> None:
    from streams.rebuild import rewind

    said = time.monotonic()
    while left := rewind(store, partitions, name):
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            click.echo(
                f"waiting for shard {left[0]} to tell what is due already, which takes a worker that runs", err=True
            )
        time.sleep(_LOOK_EVERY)


def _follow(store: Any, partitions: int, name: str, estimate: Any) -> None:
    """Say how far it is until it is done."""
    from streams.rebuild import done, rewind, sentence

    said = moved = time.monotonic()
    last = -1
    while True:
        now = time.monotonic()
        try:
            if store.rebuilding() not in (name, None):
                raise ConfigurationError("another rebuild has begun, which this one is part of now; run it again")
            found = done(store, partitions, name)
            if found.waiting:
                rewind(store, partitions, name)  # Redis was restored from a backup meanwhile
        except StoreUnavailable as error:
            click.echo(f"{error}; trying again", err=True)
            time.sleep(_LOOK_EVERY)
            continue
        estimate.saw(now, found.read)
        if found.read != last:
            last, moved = found.read, now
        if found.complete:
            return
        if now - said > _SAY_EVERY:
            said = now
            click.echo(sentence(found, estimate), err=True)
            if now - moved > _IDLE_AFTER:
                click.echo(
                    f"no record was read for {now - moved:.0f} s; is a worker running? It is waited for", err=True
                )
        time.sleep(_LOOK_EVERY)
