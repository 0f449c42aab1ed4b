"""``topics create``."""

from __future__ import annotations

from typing import Any

import click

from streams.commands.options import TOPICS, settings_from, settings_options


@click.group()
def topics() -> None:
    """Create the topics."""


@topics.command()
@click.option(
    "--partitions",
    type=click.IntRange(1, 10_000),
    default=4,
    show_default=True,
    help="of every topic but dead-letters and cluster-samples; the most workers that can share the work. Choose well: "
    "it stays.",
)
@click.option(
    "--replication", type=click.IntRange(1, 10), default=1, show_default=True, help="copies of each partition"
)
@settings_options("broker", "start_within", *TOPICS)
def create(partitions: int, replication: int, **given: Any) -> None:
    """Create what is missing of the topics; what exists stays as it is.

    Input topics are kept for good and stamped by the broker; the samples are kept for good, too. Refused if the input
    topics that exist have different numbers of partitions: a customer's purchases and signups must meet on one.
    """
    from streams.kafka import topics as kafka_topics

    for name, is_new in kafka_topics.create(settings_from(given), partitions, replication):
        click.echo(f"{name}: {'created' if is_new else 'exists'}")
