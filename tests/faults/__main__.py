"""``python -m tests.faults``: every fault as often as RELIABILITY.md asks, or random ones for some minutes."""

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

from streams.errors import ServiceUnavailable
from tests.faults.catalogue import FAULTS
from tests.faults.report import render
from tests.faults.run import Fault, Lane, Result, Shared, perform
from tests.faults.soak import soak
from tests.support.real_kafka import KafkaUnavailable

RESULTS = Path("reliability.jsonl")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "RELIABILITY.md"


class Task(NamedTuple):
    """A run to be done."""

    fault: Fault
    seed: int


class Results:
    """A file of JSON lines, to which runs are added as they end."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.failed = self.skipped = 0

    def add(self, line: dict[str, Any]) -> None:
        """Write one run down, and count it."""
        with self._lock:
            if line.get("skipped"):
                self.skipped += 1
                return
            if self._file is not None:
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.failed += not line["good"]

    def done(self) -> set[tuple[str, int]]:
        """The runs that are there already and went well."""
        if self._file is None or not self._file.exists():
            return set()
        lines = (json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines())
        return {(line["fault"], line["seed"]) for line in lines if line.get("good") and "fault" in line}


def _series(faults: list[Fault], seed: int, runs: int | None) -> Iterator[Task]:
    """Every fault in turn, so that an interrupted series has some runs of each."""
    most = max((runs or fault.runs for fault in faults), default=0)
    for number in range(most):
        yield from (Task(fault, seed + number) for fault in faults if number < (runs or fault.runs))


def _random(faults: list[Fault], seed: int, minutes: float) -> Iterator[Task]:
    """Faults drawn until the time is over."""
    rng, end = random.Random(seed), time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < end:
        yield Task(rng.choice(faults), seed + number)
        number += 1


def _perform(tasks: Iterator[Task], lanes: int, folder: Path, results: Results) -> None:
    """Take tasks one by one in each lane."""
    taking = threading.Lock()

    def work(lane: Lane) -> None:
        with lane:
            while True:
                with taking:
                    task = next(tasks, None)
                if task is None:
                    return
                result = perform(task.fault, task.seed, lane, folder)
                results.add(result.line())
                _tell(result, folder)

    with Shared() as shared, ThreadPoolExecutor(lanes) as pool:
        for each in [pool.submit(work, Lane(shared, number)) for number in range(lanes)]:
            each.result()


def _tell(result: Result, folder: Path) -> None:
    if result.skipped:
        click.echo(f"skip {result.fault}, seed {result.seed}: {result.skipped}")
        return
    recovered = "" if result.recovered is None else f", recovered after {result.recovered:.1f} s"
    figures = f"lost {result.lost}, doubled {result.doubled}, {result.repeats} repeats{recovered}"
    click.echo(f"{'ok  ' if result.good else 'FAIL'} {result.fault}, seed {result.seed}: {figures}, {result.seconds} s")
    if not result.good:
        click.echo(f"     {result.said}")
        click.echo(f"     logs are in {folder}")
        click.echo(f"     again: python -m tests.faults --only '{result.fault}' --seed {result.seed} --runs 1")


def _chosen(only: tuple[str, ...], group: tuple[str, ...]) -> list[Fault]:
    faults = [fault for fault in FAULTS.values() if not group or fault.group in group]
    if not only:
        return faults
    unknown = [name for name in only if name not in FAULTS]
    if unknown:
        raise click.BadParameter(f"no fault is called {unknown[0]!r}; see --list", param_hint="--only")
    return [fault for fault in faults if fault.name in only]


@click.command()
@click.option("--seed", type=int, help="the first run's; the others count up from it. Drawn and printed if absent")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="random faults for so long; of a soak, its length"
)
@click.option("--runs", type=click.IntRange(min=1), help="of each fault; as RELIABILITY.md asks if absent")
@click.option("--only", multiple=True, metavar="NAME", help="this fault")
@click.option(
    "--group", multiple=True, help="the faults of this group: worker, kafka, redis, input, configuration, clock"
)
@click.option("--lanes", type=click.IntRange(min=1), default=3, show_default=True, help="runs at the same time")
@click.option(
    "--results", type=click.Path(path_type=Path), help="append each run to this file; what it has is not repeated"
)
@click.option("--render", "only_render", is_flag=True, help="run nothing, write the document from the results")
@click.option("--output", type=click.Path(path_type=Path), help="write the document there from the results")
@click.option("--mutations", type=click.Path(path_type=Path), help="results of the mutation check, for the document")
@click.option("--list", "only_list", is_flag=True, help="name the faults")
@click.option(
    "--soak", "only_soak", is_flag=True, help="a million events, and a fault every ten seconds for 15 minutes"
)
@click.option("--events", type=click.IntRange(min=1000), default=1_000_000, show_default=True, help="of a soak")
@click.option("--folder", type=click.Path(path_type=Path), help="where logs of failed runs are kept")
def main(
    seed: int | None,
    minutes: float | None,
    runs: int | None,
    only: tuple[str, ...],
    group: tuple[str, ...],
    lanes: int,
    results: Path | None,
    only_render: bool,
    output: Path | None,
    mutations: Path | None,
    only_list: bool,
    only_soak: bool,
    events: int,
    folder: Path | None,
) -> None:
    """Break things on purpose, on a real Kafka and Redis, and compare everything afterwards."""
    faults = _chosen(only, group)
    if only_list:
        for fault in faults:
            click.echo(f"{fault.group:14} {fault.name}")
        return
    if only_render:
        (output or DOCUMENT).write_text(render(results or RESULTS, mutations), encoding="utf-8")
        return
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    click.echo(f"seed {seed}")
    if output is not None and results is None:
        results = RESULTS
    written = Results(results)
    folder = folder or Path(tempfile.mkdtemp(prefix="segmenter-faults-"))
    try:
        if only_soak:
            outcome = soak(seed, events, minutes or 15, folder)
            written.add(outcome)
            click.echo(json.dumps(outcome, indent=1))
        else:
            tasks = _series(faults, seed, runs) if minutes is None else _random(faults, seed, minutes)
            there = written.done()
            _perform((task for task in tasks if (task.fault.name, task.seed) not in there), lanes, folder, written)
    except (KafkaUnavailable, ServiceUnavailable) as unavailable:
        click.echo(f"no faults without servers: {unavailable}", err=True)
        sys.exit(2)
    if output is not None and results is not None:
        output.write_text(render(results, mutations), encoding="utf-8")
    if not written.failed and not any(folder.iterdir()):
        folder.rmdir()
    skipped = f"; {written.skipped} were skipped" if written.skipped else ""
    click.echo((f"{written.failed} runs failed" if written.failed else "every run went well") + skipped)
    sys.exit(1 if written.failed else 0)


if __name__ == "__main__":
    main()
