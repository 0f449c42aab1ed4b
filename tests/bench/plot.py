"""The benchmark's picture: everybody's rate, and the segmenter's as customers become more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import contenders
from tests.bench.reach import Results

_OURS, _THEIRS = "#1f77b4", "#9e9e9e"


def draw(found: Results, path: Path) -> None:
    """Write the picture; its suffix says which format."""
    import matplotlib as mpl

    mpl.use("agg")
    # The same results give the same bytes.
    mpl.rcParams["svg.hashsalt"] = "segmenter"
    from matplotlib import pyplot

    panels = 2 if found.of("workload") else 1
    figure, axes = pyplot.subplots(
        1, panels, figsize=(11, 4), width_ratios=(3, 2)[:panels], layout="constrained", squeeze=False
    )
    left = axes[0][0]
    kinds = (contenders.SegmenterWorker, contenders.DefaultPolicyWorker, *contenders.PEERS)
    everybody = [(kind.name, found.rates(kind.name)) for kind in reversed(kinds) if found.rates(kind.name)]
    places = range(len(everybody))
    colours = [_OURS if name.startswith("segmenter") else _THEIRS for name, _ in everybody]
    left.barh(places, [median(rates) / 1000 for _, rates in everybody], color=colours)
    left.errorbar(
        [median(rates) / 1000 for _, rates in everybody], places, xerr=_whiskers([rates for _, rates in everybody]),
        fmt="none", ecolor="black", capsize=3, linewidth=1,
    )  # fmt: skip
    left.set_yticks(places, [name for name, _ in everybody])
    left.set_xlabel("thousand events a second, one process")
    if panels > 1:
        _by_customers(found, axes[0][1])
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _by_customers(found: Results, right: Any) -> None:
    """The segmenter's rate on each workload."""
    for kind in (contenders.SegmenterWorker, contenders.DefaultPolicyWorker):
        for spread, style in (("uniform", "-o"), ("zipf", "--s")):
            rates = {size: found.workload(size, spread, kind.name) for size in (20_000, 200_000, 2_000_000)}
            there = {size: median(each) / 1000 for size, each in rates.items() if each}
            if there:
                right.plot(list(there), list(there.values()), style, label=f"{kind.name}, {spread}")
    right.set_xscale("log")
    right.set_ylim(bottom=0)
    right.set_xlabel("known customers")
    right.set_ylabel("thousand events a second")
    right.legend(fontsize="small")


def _whiskers(runs: Sequence[Sequence[float]]) -> list[list[float]]:
    """How far the least and the most of each lie from the median."""
    below = [(median(rates) - min(rates)) / 1000 for rates in runs]
    above = [(max(rates) - median(rates)) / 1000 for rates in runs]
    return [below, above]
