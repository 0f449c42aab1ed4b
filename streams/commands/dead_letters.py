"""``dead-letters``: what was refused, and once its cause is mended, once more onto its topic."""

from __future__ import annotations

from typing import Any

import click
import orjson

from models.instants import FOREVER, NEVER
from streams.commands import subscribe
from streams.commands.options import settings_from, settings_options
from streams.commands.show import INSTANT, progress, table
from streams.errors import ConfigurationError


@click.group("dead-letters", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="one JSON value a line")
@settings_options("broker", "dead_letters_topic", "start_within")
@click.pass_context
def dead_letters(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Show every record that was refused, and why; `retry` produces them once more."""
    if ctx.invoked_subcommand is not None:
        # What was said before the subcommand holds for it, too.
        ctx.obj = {name: value for name, value in given.items() if value is not None}
        return
    settings = settings_from(given)
    topic = settings.dead_letters_topic
    values = subscribe.read_topic(settings, topic, from_beginning=True, follow=False)
    rows = []
    for value in values:
        if as_json:
            click.echo(value)
        else:
            letter = orjson.loads(value)
            rows.append((letter["code"], _place(letter), letter["key"] or "–", letter["reason"]))
    if not as_json:
        table(f"{len(rows)} dead letters", ["code", "record", "key", "reason"], rows)


def _place(letter: Any) -> str:
    return f"{letter['topic']}/{letter['partition']}@{letter['offset']}"


@dead_letters.command()
@click.option("--code", "codes", multiple=True, help="only letters with this code; may be given several times")
@click.option("--topic", help="only records of this topic")
@click.option("--partition", type=click.IntRange(min=0), help="only records of this partition")
@click.option("--offset", type=click.IntRange(min=0), help="only the record at this offset; with --topic, --partition")
@click.option("--since", type=INSTANT, help="only records that Kafka got at this instant or later")
@click.option("--until", type=INSTANT, help="only records that Kafka got before this instant")
@click.option("--dry-run", is_flag=True, help="only show what would be retried")
@settings_options("broker", "group", "dead_letters_topic", "purchases_topic", "signups_topic", "erasures_topic",
                  "start_within")  # fmt: skip
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    codes: tuple[str, ...],
    topic: str | None,
    partition: int | None,
    offset: int | None,
    since: int | None,
    until: int | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Produce refused records once more, as they were, after what was wrong has been mended.

    Each goes to the partition that Kafka's partitioner chooses for its key. Each is retried once: to run this again
    retries nothing twice. A record that is refused again has a dead letter of its own, which may be retried in its
    turn. A purchase that was counted already adds nothing; an erasure erases what is there by now.
    """
    from streams.kafka.retrying import Retrier
    from streams.retry import Wanted, code_counts

    if offset is not None and (topic is None or partition is None):
        raise ConfigurationError("--offset means one record: name its --topic and --partition, too")
    settings = settings_from({**(ctx.obj or {}), **{name: value for name, value in given.items() if value is not None}})
    if topic is not None and topic not in settings.topics.values():
        raise ConfigurationError(f"--topic {topic}: the input topics are {', '.join(settings.topics.values())}")
    wanted = Wanted(
        frozenset(codes),
        topic,
        partition,
        offset,
        NEVER if since is None else since,
        FOREVER if until is None else until,
    )
    with Retrier(settings) as retrier:
        if not dry_run:
            retrier.begin()
        chosen = {place: letter for place, letter in retrier.waiting().items() if letter in wanted}
        if dry_run:
            rows = [(each["code"], _place(each), each["key"] or "–", each["reason"]) for each in chosen.values()]
            table(f"{len(rows)} records would be retried", ["code", "record", "key", "reason"], rows)
            return
        with progress("retried") as show:
            for count in retrier.retry(chosen):
                show(count)
    found = ", ".join(f"{count} {code}" for code, count in code_counts(chosen.values()).items())
    click.echo(f"{len(chosen)} records retried{': ' + found if found else ''}")
