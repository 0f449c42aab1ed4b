"""The report: what was measured as Markdown, ratios first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import fill
from typing import Final

from tests.bench.events import Events
from tests.bench.stages import STAGES, StageTimes
from tests.bench.throughput import Run

TARGET: Final = 25.0
DEFAULT_TARGET: Final = 2.0


@dataclass(frozen=True, slots=True)
class Repeat:
    """The worker's runs before and after the naive agent's, and under the default policy.

    ``later`` are its runs under both policies on the second half of the events, when most customers are known; in the
    third it learns clusters meanwhile.
    """

    worker: Sequence[Run]
    naive: Run
    default: Run
    later: tuple[Run, Run, Run]

    @property
    def ratio(self) -> float:
        """The worker's rate, over its runs together, against the naive agent's."""
        rate = sum(run.events for run in self.worker) / sum(run.seconds for run in self.worker)
        return rate / self.naive.rate

    @property
    def cpu_ratio(self) -> float | None:
        """The naive agent's processor time for an event against the worker's; None where it is not known."""
        spent = [run.cpu_seconds for run in self.worker if run.cpu_seconds is not None]
        if self.naive.cpu_seconds is None or len(spent) < len(self.worker):
            return None
        return self.naive.cpu_seconds / (sum(spent) / len(spent))

    @property
    def default_ratio(self) -> float | None:
        """The processor time of an event under the default policy against the lifecycle alone."""
        spent = [run.cpu_seconds for run in self.worker if run.cpu_seconds is not None]
        if self.default.cpu_seconds is None or len(spent) < len(self.worker):
            return None
        return self.default.cpu_seconds / (sum(spent) / len(spent))

    @property
    def later_ratio(self) -> float | None:
        """The same when most customers are known."""
        alone, default, _ = (run.cpu_seconds for run in self.later)
        return None if alone is None or default is None else default / alone

    @property
    def learning_ratio(self) -> float:
        """The rate while clusters are learned against the rate while none are."""
        _, default, learning = self.later
        return learning.rate / default.rate


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of the whole benchmark."""

    command: str
    quick: bool
    date: str
    load: str
    machine: Sequence[tuple[str, str]]
    events: Events
    repeats: Sequence[Repeat]
    stages: Sequence[StageTimes]

    @property
    def ratios(self) -> list[float]:
        """How many times the naive agent's rate the worker's is, in each repeat."""
        return [repeat.ratio for repeat in self.repeats]


def _spread(values: Sequence[float], digits: int = 1) -> str:
    """``min / median / max``, or the only value."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return " / ".join(f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))


def _paragraph(text: str) -> str:
    return fill(text, 120, break_on_hyphens=False, break_long_words=False)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *(_row(row) for row in rows)])


def render(measured: Measured) -> str:
    """The whole report."""
    parts = [_opening(measured), _throughput(measured), _stages(measured.stages), _METHOD, _machine(measured)]
    return "\n\n".join(parts) + "\n"


def _opening(measured: Measured) -> str:
    met = "met" if median(measured.ratios) >= TARGET else "not met"
    said = _paragraph(
        "Written by the benchmark itself. Rates belong to the machine below and to what else ran on it; ratios within "
        "one run carry further. Everywhere: minimum / median / maximum, "
        f"{len(measured.ratios)} repeat{'s' if len(measured.ratios) > 1 else ''}."
    )
    facts = [
        f"- **One worker handles {_spread(measured.ratios)} times the events per second of a naive Faust agent** "
        f"(target: at least {TARGET:g}, {met})."
    ]
    cpu = [repeat.cpu_ratio for repeat in measured.repeats if repeat.cpu_ratio is not None]
    if cpu:
        facts.append(
            f"- For an event, the naive agent's process uses {_spread(cpu)} times the processor time of the worker's."
        )
    more = [repeat.default_ratio for repeat in measured.repeats if repeat.default_ratio is not None]
    later = [repeat.later_ratio for repeat in measured.repeats if repeat.later_ratio is not None]
    if more and later:
        facts.append(
            f"- With all dimensions of the default policy an event costs {_spread(later, 2)} times the processor time "
            "of the\n  lifecycle alone once most customers are known "
            f"(target: less than 2, {'met' if median(later) < DEFAULT_TARGET else 'not met'}), and\n"
            f"  {_spread(more, 2)} times while all of them are new and enter ten dimensions."
        )
    learning = [repeat.learning_ratio for repeat in measured.repeats]
    longer = [repeat.later[2].seconds - repeat.later[1].seconds for repeat in measured.repeats]
    facts.append(
        f"- While a worker also learns clusters, its rate is {_spread(learning, 2)} times what it is without: to learn "
        f"from a\n  draw of 1,000 customers takes {_spread(longer, 2)} s longer, once a week."
    )
    parts = ["# Performance", said, "\n".join(facts)]
    if measured.quick:
        parts.insert(1, "**A quick run: it shows that the benchmark works and says nothing of speed.**")
    return "\n\n".join(parts)


def _throughput(measured: Measured) -> str:
    events = measured.events
    sides = [
        [run for repeat in measured.repeats for run in repeat.worker],
        [repeat.naive for repeat in measured.repeats],
        [repeat.default for repeat in measured.repeats],
        [repeat.later[0] for repeat in measured.repeats],
        [repeat.later[1] for repeat in measured.repeats],
        [repeat.later[2] for repeat in measured.repeats],
    ]
    notes = ["", "", "", " (known customers)", " (known customers)", " (known customers)"]
    rows = []
    for runs, note in zip(sides, notes, strict=True):
        cpu = [1e6 * run.cpu_seconds / run.events for run in runs if run.cpu_seconds is not None]
        rows.append(
            [
                f"{runs[0].name}{note}",
                _spread([run.rate for run in runs], 0),
                _spread([run.seconds for run in runs], 2),
                _spread(cpu) if cpu else "unknown",
                _spread([run.mean_batch for run in runs], 0),
                str(len(runs)),
            ]
        )
    head = ["", "events per second", "seconds", "processor µs per event", "records a commit", "runs"]
    every = [run for runs in sides[:2] for run in runs]
    more = measured.repeats[0].default
    repeated = sum(run.repeated for run in every)
    largest = max(run.output_bytes for run in every)
    ratios = ", ".join(f"{ratio:.1f}" for ratio in measured.ratios)
    said = _paragraph(
        f"All read the same {len(events.measured):,} events of {events.customers:,} generated customers (and "
        f"{len(events.warm_up):,} before them to warm up), on the same machine, in the same run, in turns. "
        f"The first two published the same {len(events.moves):,} changes, {len(events.moves) / events.total:.2f} an "
        f"event, compared one by one by customer, from, to and event; {repeated or 'none'} came twice. The largest "
        f"partition held {events.largest_partition / 2**20:.2f} MiB of events and {largest / 2**20:.2f} MiB of "
        f"changes. Ratio of the rates in each repeat: {ratios}. With the default policy there were {more.changes:,} "
        f"changes, {more.changes / events.total:.2f} an event."
    )
    return f"## One worker beside a naive Faust agent\n\n{_table(head, rows)}\n\n{said}"


def _stages(stages: Sequence[StageTimes]) -> str:
    head = ["µs per event", *(f"{each.workload}, {each.policy}, batches of {each.batch_size:,}" for each in stages)]
    rows = [[stage, *(_spread(each.micros(stage), 2) for each in stages)] for stage in STAGES]
    rows.append(["**all of it**", *(f"**{_spread(each.totals(), 2)}**" for each in stages)])
    rows.append(["changes an event", *(f"{each.changes / each.events:.2f}" for each in stages)])
    rows.append(["events", *(f"{each.events:,}" for each in stages)])
    said = _paragraph(
        "One shard, in one process, one stage after the other. A change costs more than an event, so the number of "
        "changes an event has decides; CDNOW's history, folded under the event clock, has lapses too."
    )
    return f"## Where the time goes\n\n{said}\n\n{_table(head, rows)}"


_METHOD: Final = """## How it is measured

**The worker** is `segmenter worker` as a process of its own, every setting at its default but for the addresses and the
policy: ingestion clock, one commit to Redis for each batch, and the lifecycle alone (`models/policies/lifecycle.toml`),
which is all that the naive agent does; then the default policy with all its dimensions, with cut-offs in force from the
start, taken from the same customers. "Known customers" is the second half of the events, happening now, measured after
the first half has been handled, with the cut-offs of that. "Learning" is the same while the draw of a week, 1,000
customers, lies on the samples topic, and done means that they have been learned, too.
**The naive agent** (`tests/bench/naive_agent.py`) is what
a tutorial shows: `async for event in stream`, JSON decoded by Faust into a dictionary, `redis.asyncio` GET and SET of
the customer's state as JSON for each event, the same totals and lifecycle label, and `topic.send` when the label
changes. It validates nothing, drops no duplicates, has no outbox and no atomic commit, and publishes no lapse.

In each repeat the worker runs before and after the naive agent, so that a machine which gets busier or idler meanwhile
does not favour one of them; the worker's rate in a repeat is that of both its runs together. Other load still tends to
slow the naive agent more, which waits for two other processes with each event, so the lowest ratios are the ones to
count on.

Each run gets a fresh embedded broker (librdkafka's mock cluster, 4 partitions) and a fresh redis-server without
persistence. The process starts on a few events that warm it up. Once those are done it is halted (SIGSTOP), all events
are produced, and it is let go (SIGCONT): the clock starts there and stops when everything is done, which is looked up
in Redis every 5 ms. So start-up, group join and producing are outside, and fetching is inside. Done means for the
worker that every event's state and offset are in Redis *and* the broker has acknowledged every change; for the naive
agent only that every event's state is in Redis, counted by Redis as SETs. Processor time is user and system time of the
contender's process; Redis and the broker run in others.

The embedded broker hands out one record batch of a partition for each fetch, where Kafka hands out as many as make a
megabyte. The events are therefore produced in record batches of up to a megabyte, for both contenders; a worker that is
behind gets fetches of the same size from Kafka. In smaller fetches an event costs the worker more (`--record-batch 200`
shows how much): a commit has a price of its own.

The embedded broker also keeps 5 MiB a partition and drops the oldest in silence. Each run therefore counts bytes, and
fails if a partition of events or changes holds more than 4 MiB or does not begin at offset 0. It also fails if a change
is missing, or differs from those that a count of each customer's purchases gives.

**Stages** are the worker's own classes called one after the other. What only computes is measured in processor time
of its thread, what waits for Redis or the broker in elapsed time; in a worker these overlap, in four shards."""


def _machine(measured: Measured) -> str:
    rows = [["Command", f"`{measured.command}`"], ["Date", measured.date], *(list(pair) for pair in measured.machine)]
    rows.append(["Load average at the start", measured.load])
    body = "\n".join(_row(row) for row in rows)
    return f"## Machine and versions\n\n| | |\n| --- | --- |\n{body}"
