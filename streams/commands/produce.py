"""``produce``: recorded events onto the topics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from models.instants import NEVER, SECOND, format_instant
from models.partitioner import partitions_of
from streams.commands.options import settings_from, settings_options
from streams.commands.show import INSTANT, progress
from streams.errors import ConfigurationError, ServiceUnavailable
from streams.recorded import RecordedEvent, read_recorded
from streams.security import client_options
from streams.settings import Settings

#: Seconds that are waited for an event's turn at once, so that what was produced meanwhile is heard of.
_NAP: Final = 0.5


class _Speed(click.ParamType):
    """``3600x`` or ``3600``: seconds of recorded time that pass in one second."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            speed = float(value.removesuffix("x"))
        except ValueError:
            speed = 0.0
        if not 0 < speed < float("inf"):
            self.fail(f"{value!r} is no speed; write 3600x for an hour of recorded time in a second", param, ctx)
        return speed


def due_after(first: int, instant: int, speed: float) -> float:
    """Seconds after the beginning at which what was recorded at ``instant`` is due, at ``speed`` times its pace.

    ``first`` is the instant of the beginning; both are microseconds. What has no instant, or an earlier one, is due.
    """
    return max(0.0, (instant - first) / SECOND / speed) if first != NEVER and instant != NEVER else 0.0


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="events a second; as fast as possible if absent"
)
@click.option("--speed", type=_Speed(), help="follow the recorded times: 3600x for an hour of them in a second")
@click.option("--until", type=INSTANT, help="instant of the ticks at the end; the last event's if absent")
@settings_options("broker", "start_within", "purchases_topic", "signups_topic", "erasures_topic")
def produce(files: tuple[str, ...], rate: float | None, speed: float | None, until: int | None, **given: Any) -> None:
    """Put recorded events (NDJSON, .gz, or - for standard input) onto the topics, in order and keyed.

    Several files are merged by occurred_at. At the end every partition gets a tick, so that what is due by then
    becomes known on each.
    """
    if rate is not None and speed is not None:
        raise ConfigurationError("--rate and --speed exclude each other: give one of them")
    settings = settings_from(given)
    with progress("produced") as show:
        count = 0
        for count in produce_events(read_recorded(files), settings, rate=rate, speed=speed, until=until):
            show(count)
    click.echo(f"{count} events produced to {settings.broker}")


def produce_events(
    events: Iterable[RecordedEvent],
    settings: Settings,
    *,
    rate: float | None = None,
    speed: float | None = None,
    until: int | None = None,
) -> Iterator[int]:
    """Produce events in order, then a tick to every partition; yields how many are done, now and then.

    Raises ConfigurationError, ServiceUnavailable.
    """
    from confluent_kafka import KafkaException, Producer

    from streams.kafka.topics import input_partitions

    partitions = input_partitions(settings)
    failed: list[str] = []
    producer = Producer({**client_options(settings), "enable.idempotence": True})

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

    def wait(instant: int) -> None:
        """Until an instant of recorded time has its turn."""
        if speed is None:
            return
        due = began + due_after(first, instant, speed)
        while (left := due - time.monotonic()) > 0 and not failed:
            producer.poll(0)
            time.sleep(min(left, _NAP))

    began, first, last, count = time.monotonic(), NEVER, NEVER, 0
    for count, event in enumerate(events, start=1):
        if first == NEVER:
            first = event.occurred_at
        wait(event.occurred_at)
        topic = settings.topics[event.role]
        targets = [int(partitions_of([event.key or b""], partitions)[0])]
        for partition in range(partitions) if event.is_tick else targets:
            send(topic, partition, event.key, event.value)
        last = max(last, event.occurred_at)
        if count % 500 == 0 or rate is not None or speed is not None:
            producer.poll(0)
            if failed:
                break
            yield count
        if rate is not None:
            time.sleep(max(0.0, began + count / rate - time.monotonic()))
    end = until if until is not None else last
    if end != NEVER:
        wait(end)
        tick = b'{"kind":"tick","occurred_at":"%s"}' % format_instant(end).encode()
        for partition in range(partitions):
            send(settings.purchases_topic, partition, None, tick)
    if producer.flush(max(30.0, settings.start_within)) or failed:
        reason = failed[0] if failed else "no answer"
        raise ServiceUnavailable(f"Kafka at {settings.broker} did not take every event: {reason}")
    yield count
