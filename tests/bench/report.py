"""The report: what was measured as Markdown, what was to be reached first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from textwrap import fill
from typing import Any, Final

from tests.bench import contenders
from tests.bench.reach import GOALS, Results
from tests.bench.stages import STAGES, StageTimes

Line = dict[str, Any]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """``min / median / max``, or the only value."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return " / ".join(f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))


def _paragraph(text: str) -> str:
    return fill(text, 120, break_on_hyphens=False, break_long_words=False)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    return "\n".join([_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *(_row(row) for row in rows)])


def render(lines: Sequence[Line], picture: str = "") -> str:
    """The whole report, of what is there; ``picture`` is the name of the file beside it, if there is one."""
    found = Results(lines)
    sections = (_reach, _peers, _workloads, _latency, _footprint, _stages)
    parts = [_opening(found), *(part for section in sections if (part := section(found)))]
    if picture:
        parts.insert(2, f"![Events per second of each system, and by customers]({picture})")
    return "\n\n".join([*parts, _METHOD, _machine(found)]) + "\n"


def _opening(found: Results) -> str:
    said = _paragraph(
        "Written by the benchmark itself. Rates belong to the machine below and to what else ran on it; ratios within "
        "one run carry further. Everywhere: minimum / median / maximum, or the only figure where there was one repeat."
    )
    parts = ["# Performance", said]
    if any(line["quick"] for line in found.of("about")):
        parts.append("**A quick run: it shows that the benchmark works and says nothing of speed.**")
    if any(line["embedded"] for line in found.of("about")):
        parts.append("**On the embedded broker, with few events.**")
    return "\n\n".join(parts)


def _reach(found: Results) -> str:
    rows = []
    for goal in GOALS:
        values = goal.values(found)
        bound = "≥" if goal.more_is_better else "≤"
        wanted = [f"{bound} {each:g} {goal.unit}" for each in (goal.least, goal.aim)]
        digits = 0 if goal.unit in ("%", "B") else 2 if goal.unit == "s" else 1
        measured = [f"{spread(values, digits)} {goal.unit}", goal.verdict(values)] if values else ["not measured", ""]
        rows.append([goal.what, *wanted, *measured])
    return f"## What was to be reached\n\n{table(['', 'at least', 'aim', 'measured', ''], rows)}"


def _peers(found: Results) -> str:
    own = contenders.SegmenterWorker.name
    if not found.of("run"):
        return ""
    limits = (contenders.WithoutFaust, contenders.ConsumeOnly)
    rows = []
    for kind in (contenders.SegmenterWorker, contenders.DefaultPolicyWorker, *contenders.PEERS, *limits):
        runs = found.of("run", name=kind.name)
        if not runs:
            continue
        ratio = "" if kind.name == own else spread(found.against(kind.name), 2)
        peak = f"{median([run['peak'] for run in runs]) / 1e6:,.0f}"
        rows.append(
            [
                kind.name,
                spread(found.rates(kind.name), 0),
                ratio,
                spread(found.cpu(kind.name)),
                peak,
                f"{runs[0]['events']:,}",
            ]
        )
    head = ["", "events per second", "segmenter's rate against it", "CPU s per million events", "peak MB", "events"]
    skips = "\n".join(f"- {kind.name}: {kind.skips}." for kind in contenders.PEERS if found.of("run", name=kind.name))
    said = _paragraph(
        f"All read the same events ({found.of('run')[0]['workload']}) and published the same changes, two for ten "
        "events, compared one by one. Slow ones were given the first part of them. What they skip of the segmenter's "
        "work:"
    )
    redis = found.of("redis")
    limit = (
        ""
        if not redis
        else "\n\n"
        + _paragraph(
            f"redis-benchmark writes {spread([line['rate'] for line in redis], 0)} such rows a second into one hash, a "
            "hundred in a command: what the same Redis takes when nothing else is to be done."
        )
    )
    return f"## Beside other systems\n\n{table(head, rows)}\n\n{said}\n\n{skips}{limit}"


def _workloads(found: Results) -> str:
    lines = found.of("workload")
    if not lines:
        return ""
    names = list(dict.fromkeys((line["workload"], line["name"]) for line in lines))
    rows = []
    for workload, name in names:
        runs = found.of("workload", workload=workload, name=name)
        rates = [run["events"] / run["seconds"] for run in runs]
        cpu = [1e6 * run["cpu"] / run["events"] for run in runs]
        rows.append([workload, name, spread(rates, 0), spread(cpu), f"{max(run['peak'] for run in runs) / 1e6:,.0f}"])
    head = ["known customers, and how they are picked", "", "events per second", "CPU s per million events", "peak MB"]
    text = f"## Workloads\n\n{table(head, rows)}"
    workers = [
        [str(count), spread([1e6 * run["cpu"] / run["events"] for run in runs]),
         spread([run["events"] / run["seconds"] for run in runs], 0)]
        for count in (1, 2) if (runs := found.of("workers", workers=count))
    ]  # fmt: skip
    if workers:
        text += f"\n\n{table(['workers', 'CPU s per million events', 'events per second, together'], workers)}"
    return text


def _latency(found: Results) -> str:
    rows = [
        [what, *(spread(found.each(kind, *path, figure)) for figure in ("p50", "p99")),
         f"{int(sum(found.each(kind, *path, 'count'))):,}"]
        for what, kind, path in (
            ("event produced → change consumed, 1,000 events a second", "live", ()),
            ("lapse due → change consumed", "due", ()),
            ("event produced → change consumed, before very many lapses", "burst", ("calm",)),
            ("event produced → change consumed, while they are published", "burst", ("meanwhile",)),
        ) if found.of(kind)
    ]  # fmt: skip
    if not rows:
        return ""
    text = f"## Latency\n\n{table(['milliseconds', 'p50', 'p99', 'changes'], rows)}"
    for line in found.of("burst"):
        text += "\n\n" + _paragraph(
            f"{line['lapses']:,} lapses, due within one second, were all consumed {line['seconds']:.1f} s after its "
            "beginning."
        )
    return text


_KNOWN: Final = {
    "little": "one purchase",
    "much": "16 purchases in five categories, a refund, a survey, every attribute",
}


def _footprint(found: Results) -> str:
    rows = [
        [_KNOWN[line["known"]], f"{line['customers']:,}", f"{line['worker']:.0f}", f"{line['row']:.0f}",
         f"{line['redis'] - line['row']:.0f}", spread(line["load"], 2)]
        for line in found.of("footprint")
    ]  # fmt: skip
    head = [
        "known of each",
        "customers of one shard",
        "worker, B a customer",
        "packed row, B",
        "Redis beyond the row, B",
        "load, s",
    ]
    return f"## Memory and loading\n\nOf a shard under the full default policy.\n\n{table(head, rows)}" if rows else ""


def _stages(found: Results) -> str:
    stages = [
        StageTimes(**{name: value for name, value in line.items() if name != "kind"}) for line in found.of("stages")
    ]
    if not stages:
        return ""
    head = ["µs per event", *(f"{each.workload}, {each.policy}, batches of {each.batch_size:,}" for each in stages)]
    rows = [[stage, *(spread(each.micros(stage), 2) for each in stages)] for stage in STAGES]
    rows.append(["**all of it**", *(f"**{spread(each.totals(), 2)}**" for each in stages)])
    rows.append(["changes an event", *(f"{each.changes / each.events:.2f}" for each in stages)])
    rows.append(["events", *(f"{each.events:,}" for each in stages)])
    said = _paragraph(
        "One shard, in one process, one stage after the other. A change costs more than an event, so the number of "
        "changes an event has decides; CDNOW's history, folded under the event clock, has lapses too."
    )
    return f"## Where the time goes\n\n{said}\n\n{table(head, rows)}"


_METHOD: Final = """## How it is measured

**The segmenter** is `segmenter worker` as a process of its own, every setting at its default but for the addresses and
the policy: the lifecycle alone (`models/policies/lifecycle.toml`), which is all that the others do, or the default
policy with all its dimensions, with cut-offs and a cluster model in force from the start, taken from the same
customers. **The others** are in `tests/bench/peers/`, each written as its own documentation recommends, with settings
and reasons in the file. Each is one process; Kafka Streams has one stream thread. **Without Faust** is the segmenter's
own fold, commit and publish behind a bare aiokafka consumer.

Each run gets a fresh Kafka (one broker, 4 partitions, one replica) and a fresh redis-server with an append-only file
that is synced each second, all on this machine, which they share with the process that is measured. Every known
customer's three purchases warm the process up, which the JVM needs. Then it is halted (SIGSTOP), the measured events
are produced, and it is let go (SIGCONT): the clock starts there and stops when every change is on its topic, and for
the segmenter when also every event's state and offset are in Redis and the outbox is empty. Of ten events seven are of
known customers, one is a new customer's first, one the second, one the third. A run fails if a change is missing, or
should not be there, or comes twice. Processor time is user and system time of the measured process.

**Latency**: event by event, after eight seconds that warm the broker up, from the call that hands it to the producer
(which does not linger) to the return of the consumer's poll, or from the instant that a lapse is due, on one clock.
**Memory**: resident memory of a fresh process before and after it loads the shard, and Redis's `used_memory` before
and after the shard was filled.

**Stages** are the worker's own classes called one after the other on the embedded broker. What only computes is
measured in processor time of its thread, what waits for Redis or the broker in elapsed time; in a worker these
overlap, in four shards."""


def _machine(found: Results) -> str:
    first = found.of("about")[0]
    commands = dict.fromkeys(f"`{line['command']}`" for line in found.of("about"))
    rows = [["Command", ", ".join(commands)], ["Date", first["date"]], *first["machine"]]
    rows.append(["Load average at the start", ", ".join(line["load"] for line in found.of("about"))])
    body = "\n".join(_row(row) for row in rows)
    return f"## Machine and versions\n\n| | |\n| --- | --- |\n{body}"
