"""``produce``: recorded events onto the topics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

from models.instants import NEVER, format_instant
from models.partitioner import partitions_of
from streams.commands.options import settings_from, settings_options
from streams.commands.show import INSTANT, progress
from streams.errors import ConfigurationError, ServiceUnavailable
from streams.recorded import RecordedEvent, read_recorded
from streams.settings import Settings


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="events a second; as fast as possible if absent"
)
@click.option("--until", type=INSTANT, help="instant of the ticks at the end; the last event's if absent")
@settings_options("broker", "start_within", "purchases_topic", "signups_topic", "erasures_topic")
def produce(files: tuple[str, ...], rate: float | None, until: int | None, **given: Any) -> None:
    """Put recorded events (NDJSON, .gz, or - for standard input) onto the topics, in order and keyed.

    Several files are merged by occurred_at. At the end every partition gets a tick, so that what is due by then
    becomes known on each.
    """
    settings = settings_from(given)
    with progress("produced") as show:
        count = 0
        for count in produce_events(read_recorded(files), settings, rate=rate, until=until):
            show(count)
    click.echo(f"{count} events produced to {settings.broker}")


def produce_events(
    events: Iterable[RecordedEvent], settings: Settings, *, rate: float | None = None, until: int | None = None
) -> Iterator[int]:
    """Produce events in order, then a tick to every partition; yields how many are done, now and then.

    Raises ConfigurationError, ServiceUnavailable.
    """
    from confluent_kafka import KafkaException, Producer

    from streams.kafka.topics import input_partitions

    partitions = input_partitions(settings)
    failed: list[str] = []
    producer = Producer({"bootstrap.servers": settings.broker, "enable.idempotence": True, "log_level": 0})

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(error.str())

    def send(topic: str, partition: int, key: bytes | None, value: bytes) -> None:
        while True:
            try:
                producer.produce(topic, value=value, key=key, partition=partition, on_delivery=delivered)
            except BufferError:
                producer.poll(0.1)
            except KafkaException as error:
                raise ConfigurationError(f"an event cannot be produced: {error.args[0].str()}") from None
            else:
                return

    began, last, count = time.monotonic(), NEVER, 0
    for count, event in enumerate(events, start=1):
        topic = settings.topics[event.role]
        targets = [int(partitions_of([event.key or b""], partitions)[0])]
        for partition in range(partitions) if event.is_tick else targets:
            send(topic, partition, event.key, event.value)
        last = max(last, event.occurred_at)
        if count % 500 == 0 or rate is not None:
            producer.poll(0)
            if failed:
                break
            yield count
        if rate is not None:
            time.sleep(max(0.0, began + count / rate - time.monotonic()))
    end = until if until is not None else last
    if end != NEVER:
        tick = b'{"kind":"tick","occurred_at":"%s"}' % format_instant(end).encode()
        for partition in range(partitions):
            send(settings.purchases_topic, partition, None, tick)
    if producer.flush(max(30.0, settings.start_within)) or failed:
        reason = failed[0] if failed else "no answer"
        raise ServiceUnavailable(f"Kafka at {settings.broker} did not take every event: {reason}")
    yield count
