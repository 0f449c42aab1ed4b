"""``python -m tests.bench``: the whole benchmark, or groups of it; the report is written from all results.

Each measurement appends a line to the results file, so that a long benchmark can be taken up again, and the report
rendered once more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click
import orjson

from tests.bench import contenders, footprint, latency, limits
from tests.bench.machine import describe_machine, load_average
from tests.bench.plot import draw
from tests.bench.reach import Results
from tests.bench.report import render
from tests.bench.servers import BenchError, Servers, embedded_servers, real_servers
from tests.bench.stages import measure_stages, workloads
from tests.bench.throughput import measure
from tests.bench.workload import Spread, Workload

Line = dict[str, Any]
Open = Callable[[], AbstractContextManager[Servers]]

#: Those that do less than this many events a second get fewer of them.
SLOW: Final = (contenders.NaiveAgent, contenders.FaustTable)
SIZES: Final = (20_000, 200_000, 2_000_000)
SPREADS: Final[tuple[Spread, ...]] = ("uniform", "zipf")


def _say(text: str) -> None:
    click.echo(text, err=True)


class Bench:
    """How much is measured, and on which servers."""

    def __init__(self, opened: Open, repeats: int, quick: bool, embedded: bool) -> None:
        self.opened = opened
        self.repeats = 1 if quick else repeats
        self.quick, self.embedded = quick, embedded
        small = quick or embedded  # the embedded broker keeps 5 MiB a partition
        self.customers = 1_000 if small else 20_000
        self.events, self.few = (20_000, 5_000) if small else (500_000, 30_000)

    def runs(self, kind: type[contenders.Contender], workload: Workload, **how: int) -> Iterator[Line]:
        """One contender's runs on fresh servers."""
        with self.opened() as servers:
            for run in measure(kind, workload, servers, **how):
                _say(f"{run.name}, {run.workload}: {run.rate:,.0f} events/s, {run.cpu_per_million:.1f} s CPU a million")
                yield {"kind": "run", **asdict(run)}

    def peers(self) -> Iterator[Line]:
        """Everybody on the smallest workload, in turns."""
        own = (contenders.SegmenterWorker, contenders.WithoutFaust, contenders.ConsumeOnly)
        for _ in range(self.repeats):
            for kind in (*own, *contenders.PEERS, contenders.DefaultPolicyWorker):
                reason = contenders.missing(kind, embedded=self.embedded)
                if reason is not None:
                    _say(f"{kind.name}: skipped, {reason}")
                    continue
                events = self.few if kind in SLOW else self.events
                yield from self.runs(kind, Workload(self.customers, events))

    def workloads(self) -> Iterator[Line]:
        """The segmenter on every workload; the parts of one run follow each other."""
        sizes = SIZES[:1] if self.quick else SIZES
        for spread in SPREADS:
            for kind in (contenders.SegmenterWorker, contenders.DefaultPolicyWorker):
                for customers in sizes:
                    workload = Workload(customers, self.events * self.repeats, spread)
                    for line in self.runs(kind, workload, turns=self.repeats):
                        yield {**line, "kind": "workload"}

    def workers(self) -> Iterator[Line]:
        """One worker and two, in turns."""
        for _ in range(self.repeats):
            for workers in (1, 2):
                for line in self.runs(
                    contenders.SegmenterWorker, Workload(self.customers, self.events), workers=workers
                ):
                    yield {**line, "kind": "workers"}

    def latency(self) -> Iterator[Line]:
        """Live events, lapses, and both together."""
        for _ in range(self.repeats):
            with self.opened() as servers:
                yield {"kind": "live", **asdict(latency.live(servers, seconds=5 if self.quick else 30))}
            with self.opened() as servers:
                yield {"kind": "due", **asdict(latency.due(servers, 500 if self.quick else 4_000))}
        with self.opened() as servers:
            many, within = (2_000, 40.0) if self.quick else (1_000_000, 240.0)
            yield {"kind": "burst", **asdict(latency.burst(servers, many, ready_within=within))}

    def footprint(self) -> Iterator[Line]:
        """Memory, loading, starting."""
        found = footprint.footprint("little", 20_000 if self.quick else 1_000_000, self.repeats)
        yield {"kind": "footprint", **asdict(found)}
        full = footprint.footprint("much", 2_000 if self.quick else 100_000, self.repeats)
        yield {"kind": "footprint", **asdict(full)}
        rate = limits.redis_rate(round(found.row), self.customers)
        if rate is not None:
            yield {"kind": "redis", "rate": rate, "row": found.row}
        yield {"kind": "help", "seconds": footprint.help_seconds()}
        with self.opened() as servers:
            yield {"kind": "ready", "seconds": footprint.ready_seconds(servers, 1 if self.quick else 5)}

    def stages(self) -> Iterator[Line]:
        """Each stage of the worker, one after the other."""
        for workload in workloads(3_000, 3_000) if self.quick else workloads(56_000):
            for batch_size in (1_000,) if self.quick else (1_000, 5_000):
                _say(f"stages: {workload.name}, {workload.compared.name}, batches of {batch_size:,}")
                yield {"kind": "stages", **asdict(measure_stages(workload, batch_size, self.repeats))}


GROUPS: Final = ("peers", "workloads", "workers", "latency", "footprint", "stages")


@click.command()
@click.option("--embedded", is_flag=True, help="librdkafka's mock broker instead of a real Kafka, and fewer events")
@click.option("--quick", is_flag=True, help="a few events and one repeat: does it work, not how fast it is")
@click.option("--repeats", type=click.IntRange(1, 100), default=3, show_default=True, help="how often, in turns")
@click.option("--only", type=click.Choice(GROUPS), multiple=True, help="only these groups")
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path), help="a file of results to add to")
@click.option("--render", "rendering", is_flag=True, help="measure nothing; write the report of --results")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="write the report to this file, and its picture beside it",
)
def bench(
    embedded: bool,
    quick: bool,
    repeats: int,
    only: tuple[str, ...],
    results: Path | None,
    rendering: bool,
    output: Path | None,
) -> None:
    """Throughput beside other systems, latency, memory, and where the time goes.

    Without --only everything is measured, which takes an hour and more; ``--only stages`` and the like add to
    --results, and the report has what is there.
    """
    lines: list[Line] = []
    if results is not None and results.exists():
        lines = [orjson.loads(line) for line in results.read_bytes().splitlines()]
    about = {
        "kind": "about",
        "command": " ".join(["python -m tests.bench", *(arg for arg in sys.argv[1:] if "/" not in arg)]),
        "date": datetime.now(UTC).date().isoformat(),
        "load": load_average(),
        "quick": quick,
        "embedded": embedded,
        "machine": describe_machine(),
    }
    run = Bench(embedded_servers if embedded else real_servers, repeats, quick, embedded)
    try:
        groups = () if rendering else only or GROUPS
        for line in chain([about] if groups else [], *(getattr(run, group)() for group in groups)):
            lines.append(line)
            if results is not None:
                with results.open("ab") as file:
                    file.write(orjson.dumps(line) + b"\n")
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    if not lines:
        raise click.UsageError("there are no results to render; name them with --results")
    picture = None if output is None else output.with_name("performance.svg")
    report = render(lines, "" if picture is None else picture.name)
    click.echo(report, nl=False)
    if output is not None and picture is not None:
        output.write_text(report, encoding="utf-8")
        draw(Results(lines), picture)


if __name__ == "__main__":
    bench(prog_name="python -m tests.bench")
