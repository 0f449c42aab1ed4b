"""``changes``: reading an output topic as a subscriber would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click
import orjson

from streams.commands.options import settings_from, settings_options
from streams.errors import ConfigurationError, ServiceUnavailable
from streams.security import client_options
from streams.settings import Settings

#: Change ids remembered to drop repeats; a repeat follows its first soon.
_REMEMBERED: Final = 1_000_000


def read_topic(settings: Settings, topic: str, *, from_beginning: bool, follow: bool) -> Iterator[bytes]:
    """Values of a topic, to where it ended when this began, or for ever. Raises ServiceUnavailable."""
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    from streams.kafka.topics import partitions_by_topic

    servers, within = settings.broker, settings.start_within
    partitions = partitions_by_topic(settings, [topic])[topic]
    if not partitions:
        raise ConfigurationError(f"Kafka at {servers} has no topic {topic}; run: segmenter topics create")
    consumer = Consumer(
        {
            **client_options(settings),
            "group.id": "segmenter-cli",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    try:
        ends: dict[int, int] = {}
        starts = []
        for partition in range(partitions):
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=within)
            ends[partition] = end
            starts.append(TopicPartition(topic, partition, first if from_beginning else end))
        open_ones = {p.partition for p in starts if follow or p.offset < ends[p.partition]}
        consumer.assign(starts)
        while open_ones:
            message = consumer.poll(0.5 if follow else within)
            if message is None and follow:
                continue
            if message is None:
                raise ServiceUnavailable(f"Kafka at {servers} did not answer within {within:g} s")
            partition = message.partition()
            error = message.error()
            if error is None:
                value = message.value()
                if value is not None and (follow or message.offset() < ends[partition]):
                    yield value
                if not follow and message.offset() + 1 >= ends[partition]:
                    open_ones.discard(partition)
            elif error.name() == "_PARTITION_EOF":
                if not follow:
                    open_ones.discard(partition)
            elif error.fatal() or not error.retriable():
                raise ServiceUnavailable(f"Kafka at {servers}: {error.str()}")
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka at {servers} did not answer: {error.args[0].str()}") from None
    finally:
        consumer.close()


def without_repeats(values: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Changes, each ``change_id`` once."""
    seen: dict[str, None] = {}
    for value in values:
        change = orjson.loads(value)
        if change["change_id"] in seen:
            continue
        seen[change["change_id"]] = None
        if len(seen) > _REMEMBERED:
            del seen[next(iter(seen))]
        yield change


def sentence(change: dict[str, Any]) -> str:
    """A change in one line."""
    rfm = change["rfm"]
    recency = "" if rfm["recency_days"] is None else f", last {rfm['recency_days']} d ago"
    cause = change["cause"] if change["event_id"] is None else f"{change['cause']} {change['event_id']}"
    backfill = "  (backfill)" if change["backfill"] else ""
    return (
        f"{change['effective_at']}  {change['customer_id']}  {change['dimension']}: "
        f"{change['from'] or '–'} → {change['to'] or '–'}  by {cause}  "
        f"[{rfm['frequency']} orders, {rfm['monetary']} {rfm['currency']}{recency}]{backfill}"
    )


@click.command()
@click.option("--from-beginning", is_flag=True, help="read what is there already, too")
@click.option("--follow", is_flag=True, help="go on for ever; else end where the topic ended at the start")
@click.option("--segment", metavar="DIMENSION:LABEL", help="only moves into or out of this segment: lifecycle:lapsed")
@click.option("--json", "as_json", is_flag=True, help="one JSON value a line")
@settings_options("broker", "changes_topic", "start_within")
def changes(from_beginning: bool, follow: bool, segment: str | None, as_json: bool, **given: Any) -> None:
    """Subscribe to segment changes as marketing automation would: repeated ids are removed.

    Without --follow it ends where the topic ended when it started, so it shows something only with --from-beginning.
    """
    settings = settings_from(given)
    dimension, colon, label = (segment or "").partition(":")
    if segment is not None and not (dimension and colon and label):
        raise ConfigurationError(f"--segment {segment}: write DIMENSION:LABEL, such as lifecycle:lapsed")
    values = read_topic(
        settings,
        settings.changes_topic,
        from_beginning=from_beginning,
        follow=follow,
    )
    for change in without_repeats(values):
        if segment is None or (change["dimension"] == dimension and label in (change["from"], change["to"])):
            click.echo(orjson.dumps(change) if as_json else sentence(change))
