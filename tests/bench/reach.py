"""What the project wants to reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from tests.bench import contenders

Line = dict[str, Any]
_OWN: Final = contenders.SegmenterWorker.name
_DEFAULT: Final = contenders.DefaultPolicyWorker.name


@dataclass(frozen=True)
class Goal:
    """One row: ``values`` of each repeat, and whether more is better or less."""

    what: str
    least: float
    aim: float
    unit: str
    more_is_better: bool
    values: Callable[[Results], Sequence[float]]

    def verdict(self, values: Sequence[float]) -> str:
        """Of the median."""
        found = median(values)

        def reached(bound: float) -> bool:
            return found >= bound if self.more_is_better else found <= bound

        return "aim reached" if reached(self.aim) else "reached" if reached(self.least) else "**not reached**"


class Results:
    """The lines of a results file."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines

    def of(self, kind: str, **where: Any) -> list[Line]:
        """Lines of a kind, with these values."""
        return [
            line for line in self.lines if line["kind"] == kind and all(line[name] == at for name, at in where.items())
        ]

    def rates(self, name: str, kind: str = "run") -> list[float]:
        """A contender's events per second, in each repeat."""
        return [line["events"] / line["seconds"] for line in self.of(kind, name=name)]

    def cpu(self, name: str) -> list[float]:
        """A contender's processor seconds per million events, in each repeat."""
        return [line["cpu"] / line["events"] * 1e6 for line in self.of("run", name=name)]

    def against(self, name: str) -> list[float]:
        """How many times a contender's rate the segmenter's is, repeat by repeat."""
        return [ours / theirs for ours, theirs in zip(self.rates(_OWN), self.rates(name), strict=False)]

    def cpu_against(self, name: str) -> list[float]:
        """How many times the segmenter's processor time a contender's is, repeat by repeat."""
        return [theirs / ours for ours, theirs in zip(self.cpu(_OWN), self.cpu(name), strict=False)]

    def workload(self, customers: int, spread: str = "uniform", name: str = _OWN) -> list[float]:
        """The segmenter's rates on a workload."""
        lines = self.of("workload", name=name, workload=f"{customers:,} customers, {spread}")
        return [line["events"] / line["seconds"] for line in lines]

    def kept(self) -> list[float]:
        """Rate at two million customers against two hundred thousand, in percent."""
        return [
            100 * large / small for small, large in zip(self.workload(200_000), self.workload(2_000_000), strict=False)
        ]

    def two_workers(self) -> list[float]:
        """Processor time of an event with two workers against one."""
        one, two = (
            [line["cpu"] / line["events"] for line in self.of("workers", workers=workers)] for workers in (1, 2)
        )
        return [both / alone for alone, both in zip(one, two, strict=False)]

    def each(self, kind: str, *path: str) -> list[float]:
        """A figure of every line of a kind; of lists, all of it."""
        found: list[float] = []
        for line in self.of(kind):
            value: Any = line
            for name in path:
                value = value[name]
            found += value if isinstance(value, list) else [value]
        return found


def _share(part: Callable[[Results], list[float]], whole: Callable[[Results], list[float]]) -> Any:
    return lambda found: [100 * a / b for a, b in zip(part(found), whole(found), strict=False)]


GOALS: Final = (
    Goal(
        "one process, lifecycle, against the naive agent", 50, 100, "×", True,
        lambda found: found.against(contenders.NaiveAgent.name),
    ),
    Goal("against Quix Streams", 2, 4, "×", True, lambda found: found.against(contenders.Quix.name)),
    Goal("against Bytewax", 2, 4, "×", True, lambda found: found.against(contenders.Bytewax.name)),
    Goal(
        "against Kafka Streams with RocksDB, per core", 1, 2, "×", True,
        lambda found: found.cpu_against(contenders.KafkaStreams.name),
    ),
    Goal(
        "share of the same work without Faust", 85, 95, "%", True,
        _share(lambda found: found.rates(_OWN), lambda found: found.rates(contenders.WithoutFaust.name)),
    ),
    Goal(
        "full default policy and cluster against lifecycle alone", 60, 80, "%", True,
        _share(lambda found: found.rates(_DEFAULT), lambda found: found.rates(_OWN)),
    ),
    Goal("200 k → 2 M customers, rate kept", 70, 90, "%", True, Results.kept),
    Goal("processor time of an event, two workers against one", 1.25, 1.05, "×", False, Results.two_workers),
    Goal("event produced → change consumed at 1,000 events/s, p50", 15, 8, "ms", False,
         lambda found: found.each("live", "p50")),
    Goal("event produced → change consumed at 1,000 events/s, p99", 60, 30, "ms", False,
         lambda found: found.each("live", "p99")),
    Goal("lapse due → change consumed, p99", 1000, 250, "ms", False, lambda found: found.each("due", "p99")),
    Goal("one million lapses due in one second: live p99 meanwhile", 250, 100, "ms", False,
         lambda found: found.each("burst", "meanwhile", "p99")),
    Goal("worker memory per customer (full policy)", 300, 150, "B", False,
         lambda found: [line["worker"] for line in found.of("footprint", known="little")]),
    Goal("Redis memory per customer, beyond its packed row", 80, 20, "B", False,
         lambda found: [line["redis"] - line["row"] for line in found.of("footprint", known="little")]),
    Goal("shard of 1 M customers loaded after an assignment", 3, 1, "s", False,
         lambda found: [seconds for line in found.of("footprint", known="little") for seconds in line["load"]]),
    Goal("`segmenter --help`", 0.3, 0.15, "s", False, lambda found: found.each("help", "seconds")),
    Goal("worker ready after its broker is", 5, 3, "s", False, lambda found: found.each("ready", "seconds")),
)  # fmt: skip
