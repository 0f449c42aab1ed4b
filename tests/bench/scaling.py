"""``python -m tests.bench.scaling RESULTS``: how much of everything a fleet needs, from what the benchmark measured.

Prints the tables of docs/SCALING.md. The model is linear: it takes a shard's work to depend neither on other shards nor
on how many customers it has, which the group ``workloads`` of the benchmark is there to show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click
import orjson

from tests.bench import contenders
from tests.bench.reach import Results
from tests.bench.report import table

#: Share of a worker's or a Redis node's measured rate that is used: the rest is for peaks, and to catch up.
USED: Final = 0.5
#: Customers in a shard at most: it loads in seconds, and a million lapses of one second stay bearable.
SHARD: Final = 2_000_000
#: Memory of a worker, and of a Redis node, that is used (bytes). Redis needs as much again while it rewrites its file.
WORKER_MEMORY: Final = 8e9
REDIS_MEMORY: Final = 16e9
#: A worker without customers (bytes).
_WORKER_BASE: Final = 150e6
#: Bytes of one event and one change on Kafka.
_EVENT, _CHANGE = 250, 900
#: Changes an event, with the snapshots that go with them, under the full default policy.
_CHANGES: Final = 0.8
#: What a virtual processor and a gigabyte cost a month: assumptions, to be replaced by your own.
CPU_MONTH, GB_MONTH = 25.0, 3.0


@dataclass(frozen=True)
class Measured:
    """What one process or node does: events a second of a worker, rows a second of Redis, bytes a customer in each."""

    worker_rate: float
    redis_rate: float
    worker_bytes: float
    redis_bytes: float

    @classmethod
    def of(cls, found: Results) -> Measured:
        """The medians of a benchmark's results, under the full default policy; of each customer much is known."""
        (footprint,) = found.of("footprint", known="much")[-1:]
        return cls(
            median(found.rates(contenders.DefaultPolicyWorker.name)),
            median(line["rate"] for line in found.of("redis")),
            footprint["worker"],
            footprint["redis"],
        )


@dataclass(frozen=True)
class Fleet:
    """What so many customers and events a second need."""

    customers: float
    events: float
    partitions: int
    workers: int
    worker_memory: float
    redis_nodes: int
    redis_memory: float
    kafka_bytes: float
    cost: float


def fleet(customers: float, events: float, measured: Measured) -> Fleet:
    """The smallest fleet that keeps up with ``USED`` of what was measured."""
    by_rate = math.ceil(events / (USED * measured.worker_rate))
    by_memory = math.ceil(customers * measured.worker_bytes / (WORKER_MEMORY - _WORKER_BASE))
    workers = max(2, by_rate, by_memory)
    # Twice the workers, so that there is room to grow, and a power of two, so that it can be doubled.
    partitions = 1 << math.ceil(math.log2(max(2 * workers, customers / SHARD, 4)))
    redis_memory = customers * measured.redis_bytes
    nodes = max(math.ceil(events / (USED * measured.redis_rate)), math.ceil(redis_memory / REDIS_MEMORY), 1)
    worker_memory = customers * measured.worker_bytes / workers + _WORKER_BASE
    gigabytes = (workers * worker_memory + 2 * 2 * redis_memory) / 1e9  # a replica, and room to rewrite the file
    cost = CPU_MONTH * (workers + 2 * nodes) + GB_MONTH * gigabytes
    return Fleet(
        customers, events, partitions, workers, worker_memory, nodes, redis_memory / nodes,
        events * (_EVENT + _CHANGES * _CHANGE), cost,
    )  # fmt: skip


def _count(number: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:g} {name}"
    return f"{number:,.0f}"


def render(measured: Measured) -> str:
    """The model's tables."""
    rows = []
    for customers in (1e6, 10e6, 100e6, 1e9):
        for events in (1e4, 1e5, 1e6):
            it = fleet(customers, events, measured)
            rows.append([
                _count(customers), f"{events:,.0f}", f"{it.partitions:,}", f"{it.workers:,}",
                f"{it.worker_memory / 1e9:.1f}", f"{it.redis_nodes:,}", f"{it.redis_memory / 1e9:.1f}",
                f"{it.kafka_bytes / 1e6:,.0f}", f"{it.cost:,.0f}",
            ])  # fmt: skip
    head = [
        "customers", "events a second", "partitions", "workers", "GB each", "Redis masters", "GB each",
        "Kafka, MB a second", "cost a month",
    ]  # fmt: skip
    base = [
        ["events a second of a worker, full default policy", f"{measured.worker_rate:,.0f}"],
        ["rows a second of one Redis", f"{measured.redis_rate:,.0f}"],
        ["bytes a customer in a worker", f"{measured.worker_bytes:,.0f}"],
        ["bytes a customer in Redis", f"{measured.redis_bytes:,.0f}"],
    ]
    return f"{table(['measured', ''], base)}\n\n{table(head, rows)}\n"


@click.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def scaling(results: Path) -> None:
    """Print the tables of docs/SCALING.md."""
    lines = [orjson.loads(line) for line in results.read_bytes().splitlines()]
    click.echo(render(Measured.of(Results(lines))), nl=False)


if __name__ == "__main__":
    scaling(prog_name="python -m tests.bench.scaling")
