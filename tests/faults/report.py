"""docs/RELIABILITY.md from the results of runs."""

import json
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.machine import describe_machine
from tests.faults.catalogue import FAULTS
from tests.faults.rules import RULES
from tests.support.real_kafka import KAFKA_VERSION

Line = dict[str, Any]

_GROUPS = {
    "worker": "Workers",
    "kafka": "Kafka",
    "redis": "Redis",
    "input": "Input",
    "configuration": "Configuration",
    "clock": "Clock",
}

_INTRODUCTION = """\
# Reliability

Written by `python -m tests.faults --output docs/RELIABILITY.md`; the harness is in `tests/faults/`.

A **run** is one fleet of its own (topics, group, namespace) on a real Apache Kafka and a real redis-server with an
append-only file. Its workers are processes that run `segmenter worker` (forked from one that has imported it already,
which saves seconds at every start; those of the soak are started anew). While CDNOW's purchases are produced (a sample
of {sample} events unless the fault needs more), one **fault** happens, at a moment and to a victim that the run's
**seed** decides. A worker that ends by itself is started again, as a supervisor would.

Afterwards the **oracle** compares everything:

- the changes on the topic, repeated ids removed, equal those that pandas computed in a batch, row by row (*lost* are
  those that are missing, *doubled* those that are too many or wrong), and those of a replay by id and in every field
  but `decided_at` and `backfill`; a repeated id repeats the same content;
- each customer's changes come in their order, without a gap; the last snapshot of each, which compaction keeps, has
  their labels;
- all customers in Redis equal a replay's, sizes and revenue of segments too; every record produced is in the state or
  a dead letter; the outbox is empty;
- workers that are still there stop within ten seconds of SIGTERM with exit code 0, and no log has a traceback.

*Repeats* are changes sent more than once, which consumers drop by `change_id`: the price of at-least-once after a
crash. *Seconds to recover* are from the fault (for a worker that kills itself: from its death) until everything that
was being produced at that moment is folded and published; a session timeout of three seconds, or two, is part of it.
For faults that are an outage, so is the outage.

Again: `make faults` for all of it, `make faults SEED=7 MINUTES=10` for random faults, and one run of a kind with
`python -m tests.faults --only 'SIGKILL after the commit' --seed 3 --runs 1`. `make test` runs a selection.
"""


def render(results: Path, mutations: Path | None = None) -> str:
    """The document. ``results`` are JSON lines of runs, soaks and stops; ``mutations`` those of the mutation check."""
    lines = _lines(results)
    runs = [line for line in lines if "fault" in line]
    parts = [
        _INTRODUCTION.format(sample=f"{6919:,}"),
        _machine(),
        _faults([run for run in runs if run["group"] != "stop"]),
        _soak([line for line in lines if "soak" in line]),
        _stops([run for run in runs if run["group"] == "stop"]),
        _rules(),
        _mutations([] if mutations is None else _lines(mutations)),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _lines(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    bar = ["---" if not place else "---:" for place in range(len(head))]
    every = [head, bar, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in every)


def _machine() -> str:
    known = [*describe_machine(), ("Kafka", f"Apache Kafka {KAFKA_VERSION}, KRaft, no replication unless it says so")]
    rows = [(what, said) for what, said in known if what != "Libraries"]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("segmenter", "faust-streaming", "aiokafka", "redis"))
    return f"## Where\n\n{datetime.now(UTC):%Y-%m-%d}, {platform.system()}\n\n" + "\n".join(
        f"- {what}: {said}" for what, said in [*rows, ("Libraries", libraries)]
    )


def _faults(runs: list[Line]) -> str:
    """One row for each fault: all of its runs together."""
    parts = ["## Faults\n"]
    head = ("fault", "runs", "seeds", "events", "lost", "doubled after dedupe", "duplicates sent", "seconds to recover")
    failed = [run for run in runs if not run["good"]]
    good = len(runs) - len(failed)
    parts.append(f"{len(runs)} runs, {good} of them went well; {sum(run['events'] for run in runs):,} events.\n")
    for group, title in _GROUPS.items():
        names = [name for name, fault in FAULTS.items() if fault.group == group]
        names += sorted({run["fault"] for run in runs if run["group"] == group} - set(names))
        rows = [_row(name, found) for name in names if (found := [run for run in runs if run["fault"] == name])]
        if rows:
            parts.append(f"### {title}\n\n{_table(head, rows)}\n")
    told = {run["fault"]: run["said"] for run in runs if run["good"] and run["said"]}
    if told:
        parts.append("Where a run ends with a sentence and not with a result, the sentence is checked:\n")
        parts.append("\n".join(f"- {fault}: {said}" for fault, said in told.items()) + "\n")
    if failed:
        parts.append("### Runs that failed\n")
        parts.append(
            "\n".join(f"- {run['fault']}, seed {run['seed']}: {run['said'].splitlines()[0]}" for run in failed)
        )
    return "\n".join(parts)


def _row(name: str, runs: list[Line]) -> tuple[object, ...]:
    times = [run["recovered"] for run in runs if run["recovered"] is not None]
    recovered = f"{median(times):.1f} / {max(times):.1f}" if times else "–"
    figures = [f"{sum(run[figure] for run in runs):,}" for figure in ("lost", "doubled", "repeats")]
    return (
        name,
        len(runs),
        _seeds(run["seed"] for run in runs),
        f"{sum(run['events'] for run in runs):,}",
        *figures,
        recovered,
    )


def _seeds(seeds: Iterable[int]) -> str:
    """``0–19, 40``."""
    spans: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if spans and spans[-1][1] + 1 == seed:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)


def _soak(found: list[Line]) -> str:
    if not found:
        return ""
    last = found[-1]
    faults = ", ".join(f"{count} × {name}" for name, count in last["faults"].items())
    rows = [
        (
            name,
            memory["samples"],
            *(f"{memory[figure]:.1f}" for figure in ("min", "median", "max")),
            f"{memory['slope']:+.2f}",
        )
        for name, memory in last["memory"].items()
    ]
    head = ("worker", "seconds", "least MB", "median MB", "most MB", "MB a minute")
    minutes, verdict = last["seconds"] / 60, "nothing differs" if last["good"] else last["said"]
    return (
        f"## A long run\n\n{last['events']:,} generated events in {minutes:.1f} minutes on four partitions, seed "
        f"{last['seed']}, a fault every {last['every']:g} s: {faults}.\n\n"
        f"Lost {last['lost']}, doubled {last['doubled']}, {last['repeats']:,} repeats, {last['changes']:,} changes. "
        f"The oracle is that of every run: {verdict}.\n\n"
        "Memory (resident, sampled each second, after the first third of the run; the slope is by least squares on "
        "time and the number of shards it owns at that second) of the worker that nobody kills, though it is "
        "rebalanced with every fault of another:\n\n"
        f"{_table(head, rows)}\n"
    )


def _stops(runs: list[Line]) -> str:
    """One row for each state."""
    if not runs:
        return ""
    rows = []
    for state in [name for name in FAULTS if any(run["fault"] == name for run in runs)]:
        times = [run["stopped"] for run in runs if run["fault"] == state and run["good"]]
        if not times:
            rows.append((state, 0, "**no run went well**"))
            continue
        rows.append((state, len(times), f"{median(times):.1f} / {max(times):.1f}"))
    head = ("state", "runs", "seconds, median / longest")
    return (
        "## SIGTERM\n\nFrom SIGTERM to the end of the process with exit code 0, in every state a worker can be in. (In "
        "its first moments, while Python itself starts, the signal ends it at once and without a code, as it ends any "
        f"process.)\n\n{_table(head, rows)}"
    )


def _rules() -> str:
    rows = []
    for rule in RULES:
        by_file: dict[str, list[str]] = {}
        for test in rule.tests:
            file, _, function = test.partition("::")
            by_file.setdefault(file, []).append(function)
        told = [f"`{file}`" + (": " + ", ".join(f"`{each}`" for each in each_of if each) if any(each_of) else "")
                for file, each_of in by_file.items()]  # fmt: skip
        rows.append((f"{rule.number}. {rule.name}", "; ".join(told)))
    lines = ["| rule | tests |", "| --- | --- |", *(f"| {name} | {tests} |" for name, tests in rows)]
    return (
        "## Rules and the tests that hold them\n\nThe rules are those of DESIGN.md, the files lie in `tests/`.\n\n"
        + "\n".join(lines)
    )


def _mutations(found: list[Line]) -> str:
    """Lines have ``mutation`` (what was removed) and ``caught`` (the tests that failed without it)."""
    if not found:
        return ""
    rows = [
        f"| {line['mutation']} | {', '.join(f'`{test}`' for test in line['caught']) or '**none**'} |" for line in found
    ]
    head = ["| removed | tests that fail without it |", "| --- | --- |"]
    return "## Mutation check\n\n" + "\n".join([*head, *rows])
