"""``replay``: recorded events to changes, in process."""

from __future__ import annotations

import time
from pathlib import Path

import click

from models.policy import default_policy
from streams.commands.show import INSTANT, progress, table, write_lines
from streams.recorded import read_recorded
from streams.replay import Replay
from streams.settings import read_policy


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path), help="TOML policy; the default one if absent")
@click.option("--until", type=INSTANT, help="instant that time reaches at the end; the last event's if absent")
@click.option("--changes", metavar="OUT", help="write the changes here as NDJSON, - for standard output")
@click.option("--dead-letters", metavar="OUT", help="write what was refused here as NDJSON")
@click.option("--customers", metavar="OUT", help="write every customer at the end here as NDJSON, by customer_id")
@click.option(
    "--batch-size", type=click.IntRange(1, 10_000_000), default=5000, show_default=True, help="events a batch"
)
@click.option("--shards", type=click.IntRange(1, 1024), default=1, show_default=True, help="shards, as partitions")
def replay(
    files: tuple[str, ...],
    policy_file: Path | None,
    until: int | None,
    changes: str | None,
    dead_letters: str | None,
    customers: str | None,
    batch_size: int,
    shards: int,
) -> None:
    """Compute the changes of recorded events (NDJSON, .gz, or - for standard input), without any server.

    It is the processor that workers run, on a store in memory and the events' own clock. Several files are merged by
    occurred_at. The same input gives the same bytes, whatever the batch size; input in time order gives the same
    changes, but for decided_at, whatever the number of shards.
    """
    policy = default_policy() if policy_file is None else read_policy(policy_file)
    run = Replay(policy, shards, batch_size)
    began = time.perf_counter()
    with progress("replayed") as show:
        for count in run.feed(read_recorded(files)):
            show(count)
    result = run.finish(until)
    seconds = time.perf_counter() - began
    if changes is not None:
        write_lines(changes, result.changes)
    if dead_letters is not None:
        write_lines(dead_letters, result.dead_letters)
    if customers is not None:
        write_lines(customers, result.customers())
    if "-" in (changes, dead_letters, customers):
        return
    money = policy.converter
    table(
        f"{result.events} events, {len(result.changes)} changes, {len(result.dead_letters)} dead letters, "
        f"{seconds:.1f} s",
        ["segment", "customers", f"revenue ({money.base})"],
        [(name, size.customers, money.text(size.revenue)) for name, size in sorted(result.segments.items())],
        numbers=["customers", f"revenue ({money.base})"],
    )
    moves: dict[tuple[str, str], int] = {}
    for change in result.changes:
        move = (f"{change['dimension']}: {change['from'] or '–'} → {change['to'] or '–'}", change["cause"])
        moves[move] = moves.get(move, 0) + 1
    rows = [(move, cause, count) for (move, cause), count in sorted(moves.items())]
    table("moves", ["move", "cause", "changes"], rows, numbers=["changes"])
    if result.dead_letters:
        codes: dict[str, int] = {}
        for letter in result.dead_letters:
            codes[letter["code"]] = codes.get(letter["code"], 0) + 1
        table("dead letters", ["code", "events"], sorted(codes.items()), numbers=["events"])
