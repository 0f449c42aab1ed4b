"""``verify``: the audit of a running fleet against its topics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import click
import orjson

from streams.commands.inspect import open_stored
from streams.commands.options import settings_from, settings_options
from streams.commands.show import progress, table
from streams.errors import ConfigurationError
from streams.verify_report import ShardReport

#: Exit code when something differs.
DIFFERS: Final = 3
_SETTINGS: Final = (
    "broker", "redis", "namespace", "clock", "purchases_topic", "signups_topic", "erasures_topic", "changes_topic",
    "snapshots_topic", "dead_letters_topic", "start_within",
)  # fmt: skip


@click.command()
@click.option("--shard", "shards", type=int, multiple=True, metavar="N", help="only this shard; may be repeated")
@click.option("--customer", metavar="ID", help="only this customer")
@click.option("--json", "as_json", is_flag=True, help="one JSON value a line: each finding, then the summary")
@click.option("--most", type=click.IntRange(1), default=20, show_default=True, help="findings that are shown")
@settings_options(*_SETTINGS)
def verify(shards: tuple[int, ...], customer: str | None, as_json: bool, most: int, **given: Any) -> None:
    """Compute everything again from the topics, and compare it with the state and with what was published.

    Workers may go on meanwhile; nothing is written. It needs the memory of one shard, and reads every topic once, so it
    takes about as long as a worker would to rebuild the state. --clock must be the fleet's.

    Exit code 0: all agrees. 3: something differs. 1: it could not be done, or not for every shard.
    """
    from models.partitioner import partition_of
    from streams.processor import Clock
    from streams.security import client_options
    from streams.shard_log import KafkaLog
    from streams.verify import Audit, OutputNames

    settings = settings_from(given)
    store, partitions = open_stored(settings)
    if customer is not None:
        shards = (partition_of(customer.encode(), partitions),)
    if wrong := [shard for shard in shards if not 0 <= shard < partitions]:
        raise ConfigurationError(f"there is no shard {wrong[0]}; the fleet has {partitions}, from 0 on")
    log = KafkaLog(client_options(settings), settings.broker, settings.start_within)
    try:
        for topic in settings.topics.values():
            if (count := log.partitions(topic)) != partitions:
                raise ConfigurationError(
                    f"topic {topic} has {count} partitions and the state {partitions} shards, so it cannot be verified"
                )
        outputs = OutputNames(settings.changes_topic, settings.snapshots_topic, settings.dead_letters_topic)
        audit = Audit(store, log, settings.topics, partitions, Clock(settings.clock), outputs, customer)
        reports = []
        with progress("computed again") as seen:
            done = 0
            for shard in sorted(set(shards)) or range(partitions):
                reports.append(replace(audit, progress=_after(seen, done)).verify(shard))
                done += reports[-1].events
    finally:
        log.close()
    (_print_json if as_json else _print)(reports, most)
    sys.stdout.flush()
    if any(report.findings for report in reports):
        sys.exit(DIFFERS)
    if any(report.unverified for report in reports):
        sys.exit(1)


def _after(seen: Callable[[int], None], done: int) -> Callable[[int], None]:
    """Count on from what earlier shards had."""
    return lambda events: seen(done + events)


def _print_json(reports: list[ShardReport], most: int) -> None:
    shown = 0
    for report in reports:
        for each in report.findings:
            if shown < most:
                click.echo(
                    orjson.dumps(
                        {
                            "shard": each.shard,
                            "what": each.what,
                            "customer_id": each.customer,
                            "sentence": each.sentence,
                            "why": list(each.why),
                        }
                    )
                )
            shown += 1
    summary = {
        "findings": shown,
        "unverified": {str(report.shard): report.unverified for report in reports if report.unverified},
        "notes": [note for report in reports for note in report.notes],
        **{name: sum(getattr(report, name) for report in reports) for name in _FIGURES},
    }
    click.echo(orjson.dumps({"summary": summary}))


_FIGURES: Final = ("events", "customers", "changes", "repeated", "snapshots", "letters", "pending")


def _print(reports: list[ShardReport], most: int) -> None:
    findings = [each for report in reports for each in report.findings]
    for each in findings[:most]:
        who = f"customer {each.customer}: " if each.customer is not None else ""
        click.echo(f"shard {each.shard}: {who}{each.sentence}")
        for line in each.why:
            click.echo(f"    {line}")
    if len(findings) > most:
        click.echo(f"{len(findings) - most} more are not shown; see --most")
    for report in reports:
        for note in report.notes:
            click.echo(f"note: {note}")
    columns = [
        "shard",
        "events",
        "customers",
        "changes",
        "sent again",
        "snapshots",
        "dead letters",
        "to be sent",
        "differ",
    ]
    rows = [
        (
            *(report.shard, report.events, report.customers, report.changes, report.repeated, report.snapshots),
            *(report.letters, report.pending, "not verified" if report.unverified else len(report.findings)),
        )
        for report in reports
    ]
    table("verified", columns, rows, numbers=columns)
    for report in reports:
        if report.unverified:
            click.echo(f"shard {report.shard} could not be verified: {report.unverified}")
    whole = all(report.unverified is None for report in reports)
    if findings:
        click.echo(f"{len(findings)} differences were found.")
    elif whole:
        but = ", but for what the notes say" if any(report.notes for report in reports) else ""
        click.echo(f"What is stored and what was published is what follows from the topics{but}.")
