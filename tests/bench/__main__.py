"""``python -m tests.bench``: the whole benchmark, printed as a report and, if asked, written to a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import click

from tests.bench.events import RECORD_BATCH, Events, make_events
from tests.bench.machine import describe_machine, load_average
from tests.bench.report import Measured, Repeat, render
from tests.bench.stages import StageTimes, measure_stages, workloads
from tests.bench.throughput import (
    BenchError,
    Contender,
    DefaultPolicyWorker,
    LearningWorker,
    NaiveAgent,
    Run,
    SegmenterWorker,
    measure,
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured. The embedded broker holds no more events than the full size."""

    events: int
    warm_up: int
    stage_events: int | None
    batch_sizes: tuple[int, ...]


FULL = Size(events=56_000, warm_up=400, stage_events=None, batch_sizes=(1000, 5000))
QUICK = Size(events=3000, warm_up=400, stage_events=3000, batch_sizes=(1000,))


def _say(text: str) -> None:
    click.echo(text, err=True)


def _throughput(events: Events, known: Events, repeats: int, record_batch: int, quick: bool) -> list[Repeat]:
    """Half of the events of ``known`` come before what is measured, so that most customers are there already.

    In each repeat the worker before and, unless it is to be quick, after the naive agent's much longer run."""

    def run(kind: type[Contender], events: Events = events) -> Run:
        found = measure(kind, events, record_batch)
        _say(f"{found.name}: {found.rate:,.0f} events/s, {found.changes:,} changes")
        return found

    found = []
    for repeat in range(1, repeats + 1):
        _say(f"repeat {repeat} of {repeats}")
        before, naive = run(SegmenterWorker), run(NaiveAgent)
        default = run(DefaultPolicyWorker)
        later = (run(SegmenterWorker, known), run(DefaultPolicyWorker, known), run(LearningWorker, known))
        found.append(Repeat((before,) if quick else (before, run(SegmenterWorker)), naive, default, later))
    return found


def _stages(events: Events, size: Size, repeats: int) -> list[StageTimes]:
    found = []
    for workload in workloads(events, size.stage_events):
        for batch_size in size.batch_sizes:
            _say(f"stages: {workload.name}, {workload.compared.name}, batches of {batch_size:,}")
            found.append(measure_stages(workload, batch_size, repeats))
    return found


@click.command()
@click.option("--quick", is_flag=True, help="a few events and one repeat: does it work, not how fast it is")
@click.option("--repeats", type=click.IntRange(1, 100), default=3, show_default=True, help="how often, in turns")
@click.option(
    "--record-batch",
    type=click.IntRange(min=1),
    default=RECORD_BATCH,
    show_default="up to a megabyte",
    help="events in a record batch, which is what the embedded broker hands out a fetch",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="write the report to this file too")
@click.option("--at-least", type=float, help="fail if the median ratio is lower")
def bench(quick: bool, repeats: int, record_batch: int, output: Path | None, at_least: float | None) -> None:
    """Events per second of one worker beside a naive Faust agent, and microseconds per event of each stage."""
    size, repeats = (QUICK, 1) if quick else (FULL, repeats)
    command = " ".join(["python -m tests.bench", *sys.argv[1:]])
    load, events = load_average(), make_events(size.events, size.warm_up)
    known = make_events(size.events, size.events // 2, live=True)
    try:
        runs = _throughput(events, known, repeats, record_batch, quick)
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    date = datetime.now(UTC).date().isoformat()
    stages = _stages(events, size, repeats)
    measured = Measured(command, quick, date, load, describe_machine(), events, runs, stages)
    report = render(measured)
    click.echo(report, nl=False)
    if output is not None:
        output.write_text(report, encoding="utf-8")
    if at_least is not None and median(measured.ratios) < at_least:
        raise click.ClickException(f"the median ratio {median(measured.ratios):.1f} is lower than {at_least:g}")


if __name__ == "__main__":
    bench(prog_name="python -m tests.bench")
