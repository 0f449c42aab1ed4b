"""``worker`` and ``stack``: what runs until it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import click

from streams import failpoints
from streams.commands.options import settings_from, settings_options


@click.command()
@settings_options()
def worker(**given: Any) -> None:
    """Run one worker.

    It joins the consumer group, takes its share of the partitions, and publishes segment changes until SIGTERM. Start
    as many as there are partitions, at most. Killing one at any moment loses nothing and doubles nothing.
    """
    # Until Faust has handlers of its own, which takes a second of imports and the first look at Kafka and Redis. There
    # is nothing to finish yet, and an exception would come out of whatever is being imported as another one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from streams.kafka.worker import Worker, set_up_logging
    from streams.wiring import worker_app

    settings = settings_from(given)
    if settings.fail_point is not None:
        failpoints.arm(settings.fail_point)
    set_up_logging(settings.log_level)
    Worker(worker_app(settings)).execute_from_commandline()


@click.command()
@settings_options("purchases_topic", "signups_topic", "erasures_topic")
def stack(**given: Any) -> None:
    """Run a broker and a Redis on loopback, for a first look and for tests.

    Prints their addresses as export lines, then runs until Ctrl-C or SIGTERM; nothing is kept. In another terminal,
    paste the lines and start a worker.
    """
    from streams.embedded.stack import EmbeddedStack

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with EmbeddedStack(settings_from(given)) as running:
        for name, value in running.environment().items():
            click.echo(f"export {name}={value}")
        stop.wait()
