"""The population: what a shard says about all its customers, and the cut-offs that follow from all shards together.

A shard's summary is made in one vector pass and can be merged with others' in any order. Everything is counted in
integers, so equal shards give equal cut-offs on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from models.clusters import ClusterModel
from models.engines import ClusterPolicy, ParetoPolicy, RfmPolicy, Scored
from models.errors import StateError
from models.instants import NEVER
from models.policy import Policy
from models.table import NO_LABEL, CustomerTable

#: Values of which a stored distribution is exact. Of more it has this many parts, each of as many customers: a cut-off
#: is off by at most one part of a shard.
BINS: Final = 10_000
#: Shares of the population at which RFM scores change.
QUINTILES: Final = (Fraction(1, 5), Fraction(2, 5), Fraction(3, 5), Fraction(4, 5))
#: What is summarised: age of the last purchase in microseconds, purchases, net revenue in minor units.
SUMMARISED: Final = ("recency", "orders", "monetary")


@dataclass(frozen=True)
class Distribution:
    """How often values occur: ``values`` ascending, how many customers have each, and the sum of what they have.

    After ``cut`` a value stands for itself and for those below it down to the value before.
    """

    values: NDArray[np.int64]
    counts: NDArray[np.int64]
    sums: NDArray[np.int64]

    @classmethod
    def of(cls, observed: NDArray[np.int64]) -> Distribution:
        """The exact distribution of observed values."""
        values, counts = np.unique(observed, return_counts=True)
        return cls(values, counts.astype(np.int64), values * counts)

    @classmethod
    def merged(cls, parts: Sequence[Distribution]) -> Distribution:
        """The distribution of all parts' customers together."""
        every = np.concatenate([part.values for part in parts])
        values, place = np.unique(every, return_inverse=True)
        counts, sums = np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([part.counts for part in parts]))
        np.add.at(sums, place, np.concatenate([part.sums for part in parts]))
        return cls(values, counts, sums)

    def cut(self, bins: int = BINS) -> Distribution:
        """The same in about ``bins`` parts of as many customers each, if there are more values than that."""
        if len(self.values) <= bins:
            return self
        upto = np.cumsum(self.counts)
        part = (upto - 1) * bins // int(upto[-1])
        last = np.flatnonzero(np.append(part[1:] != part[:-1], True))
        first = np.concatenate([[0], last[:-1] + 1])
        return Distribution(self.values[last], np.add.reduceat(self.counts, first), np.add.reduceat(self.sums, first))

    @property
    def size(self) -> int:
        """How many customers."""
        return int(self.counts.sum())

    def quantile(self, share: Fraction) -> int:
        """The least value that at least this share of the customers does not exceed (inverse of the distribution)."""
        needed = -(-self.size * share.numerator // share.denominator)
        return int(self.values[np.searchsorted(np.cumsum(self.counts), max(needed, 1))])

    def rank(self, value: int) -> tuple[Fraction, Fraction]:
        """The shares of customers below ``value`` and not above it."""
        below = int(self.counts[self.values < value].sum())
        upto = int(self.counts[self.values <= value].sum())
        return Fraction(below, self.size), Fraction(upto, self.size)

    def leaders(self, share: Fraction) -> int:
        """The value from which on the customers with most make up at least this share of all that is positive.

        If nothing is positive, a value above all and above zero.
        """
        positive = np.maximum(self.sums, 0)[::-1]
        total = int(positive.sum())
        if not total:
            return max(int(self.values[-1]), 0) + 1
        before = np.cumsum(positive) - positive
        needed = -(-total * share.numerator // share.denominator)
        return int(self.values[::-1][np.searchsorted(before, needed) - 1])

    def share_from(self, value: int) -> tuple[Fraction, Fraction]:
        """The shares of all that is positive that customers above ``value``, and from it on, make up."""
        positive = np.maximum(self.sums, 0)
        total = int(positive.sum()) or 1
        above = int(positive[self.values > value].sum())
        return Fraction(above, total), Fraction(int(positive[self.values >= value].sum()), total)


@dataclass(frozen=True)
class Summary:
    """One shard's customers, or all shards' together, at one instant.

    ``distributions`` of those who bought, by SUMMARISED; ``segments`` as ``dimension:label`` → customers and net
    revenue in minor units.
    """

    distributions: Mapping[str, Distribution]
    segments: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Summary:
        """Nobody."""
        nobody = Distribution.of(np.empty(0, dtype=np.int64))
        return cls(dict.fromkeys(SUMMARISED, nobody))

    @classmethod
    def merged(cls, parts: Sequence[Summary]) -> Summary:
        """All shards together."""
        segments: dict[str, tuple[int, int]] = {}
        for part in parts:
            for name, (customers, revenue) in part.segments.items():
                known = segments.get(name, (0, 0))
                segments[name] = (known[0] + customers, known[1] + revenue)
        every = {name: Distribution.merged([part.distributions[name] for part in parts]) for name in SUMMARISED}
        return cls(every, segments)

    def cut(self) -> Summary:
        """The same, small enough to be stored."""
        return Summary({name: each.cut() for name, each in self.distributions.items()}, self.segments)

    @property
    def json(self) -> bytes:
        """The summary as stored."""
        return orjson.dumps(
            {
                "distributions": {
                    name: {"values": d.values.tolist(), "counts": d.counts.tolist(), "sums": d.sums.tolist()}
                    for name, d in self.distributions.items()
                },
                "segments": self.segments,
            }
        )

    @classmethod
    def parse(cls, text: bytes) -> Summary:
        """Read a stored summary. Raises StateError if it is damaged."""
        try:
            stored = orjson.loads(text)
            every = {name: stored["distributions"][name] for name in SUMMARISED}
            return cls(
                {
                    name: Distribution(
                        *(np.array(each[column], dtype=np.int64) for column in ("values", "counts", "sums"))
                    )
                    for name, each in every.items()
                },
                {name: (int(size[0]), int(size[1])) for name, size in stored["segments"].items()},
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise StateError(f"a stored population summary is damaged ({error!r}); restore the store") from None


def summary_of(table: CustomerTable, instant: int) -> Summary:
    """All customers of a shard as of an instant, in one vector pass."""
    rows = table.rows
    buyers = rows[table.orders[rows] > 0]
    net = table.net(rows)
    segments = {}
    for d, name in enumerate(table.dimensions):
        code = table.label[rows, d].astype(np.int64)
        labelled = code != NO_LABEL
        width = len(table.labels[d])
        sizes = np.bincount(code[labelled], minlength=width).tolist()
        revenue = np.zeros(width, dtype=np.int64)
        np.add.at(revenue, code[labelled], net[labelled])
        for label, customers, earned in zip(table.labels[d], sizes, revenue.tolist(), strict=True):
            segments[f"{name}:{label}"] = (customers, earned)
    observed = {
        "recency": np.maximum(instant - table.last_purchase_at[buyers], 0),
        "orders": table.orders[buyers],
        "monetary": table.net(buyers),
    }
    return Summary({name: Distribution.of(values) for name, values in observed.items()}, segments)


@dataclass(frozen=True)
class Cutoffs:
    """What labels depend on beside the customer.

    ``scores``: for each scored dimension its cut-offs by what is summarised, ascending: quintiles for RFM, the lower
    bounds of the classes but the last, from the lowest, for pareto. ``small``: segments that are not viable.
    ``clusters``: for each cluster dimension the version of what was learned, if it has been.
    ``as_of``: the instant at which the population was summarised, NEVER if it was not.
    """

    as_of: int = NEVER
    scores: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    small: frozenset[str] = frozenset()
    clusters: Mapping[str, ClusterModel] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "as_of": self.as_of,
            "scores": {name: {of: list(cuts) for of, cuts in each.items()} for name, each in self.scores.items()},
            "small": sorted(self.small),
            "clusters": {name: model.model_dump(mode="json") for name, model in self.clusters.items()},
        }

    @classmethod
    def from_plain(cls, stored: Mapping[str, Any]) -> Cutoffs:
        """The inverse of ``plain``."""
        scores = {
            str(name): {str(of): tuple(int(cut) for cut in cuts) for of, cuts in each.items()}
            for name, each in stored["scores"].items()
        }
        clusters = {
            str(name): ClusterModel.parse(orjson.dumps(model)) for name, model in stored.get("clusters", {}).items()
        }
        return cls(int(stored["as_of"]), scores, frozenset(str(name) for name in stored["small"]), clusters)

    @property
    def known(self) -> frozenset[str]:
        """The dimensions that have what their labels depend on."""
        return frozenset(self.scores) | frozenset(self.clusters)


def cutoffs_of(
    policy: Policy, summary: Summary, as_of: int, previous: Cutoffs, learned: Mapping[str, ClusterModel] | None = None
) -> Cutoffs:
    """The policy's cut-offs for a population summarised ``as_of`` an instant, with the models ``learned`` by then.

    Those of before stay where they are while they are within the dimension's margin, and without a single buyer; a
    model stays until there is another that fits the dimension.
    """
    known = previous.scores
    scores = {name: cuts for name, cuts in known.items() if name in policy.dimensions}
    if summary.distributions["orders"].size:
        for name, dimension in policy.dimensions.items():
            if isinstance(dimension, RfmPolicy):
                scores[name] = _quintiles(dimension, summary, known.get(name, {}))
            elif isinstance(dimension, ParetoPolicy):
                scores[name] = _classes(dimension, summary, known.get(name, {}))
    clusters = {}
    for name, model in {**previous.clusters, **(learned or {})}.items():
        engine = policy.dimensions.get(name)
        if isinstance(engine, ClusterPolicy) and model.fits(engine):
            clusters[name] = model
    return Cutoffs(as_of, scores, frozenset(_small(policy, summary)), clusters)


def _margin(dimension: Scored) -> Fraction:
    return Fraction(dimension.margin) / 100


def _quintiles(
    dimension: RfmPolicy, summary: Summary, previous: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    margin = _margin(dimension)
    found = {}
    for of in SUMMARISED:
        distribution = summary.distributions[of]
        cuts = [distribution.quantile(share) for share in QUINTILES]
        for i, old in enumerate(previous.get(of, ())[: len(cuts)]):
            below, upto = distribution.rank(old)
            if below - margin <= QUINTILES[i] <= upto + margin:
                cuts[i] = old
        found[of] = tuple(np.maximum.accumulate(cuts).tolist())
    return found


def _classes(
    dimension: ParetoPolicy, summary: Summary, previous: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    distribution, margin = summary.distributions["monetary"], _margin(dimension)
    shares, upto = [], Decimal(0)
    for percent in list(dimension.classes.values())[:-1]:
        upto += percent
        shares.append(Fraction(upto) / 100)
    cuts = [distribution.leaders(share) for share in reversed(shares)]
    olds = previous.get("monetary", ())
    if len(olds) == len(cuts):
        for i, (old, share) in enumerate(zip(olds, reversed(shares), strict=True)):
            above, from_it = distribution.share_from(old)
            if above - margin <= share <= from_it + margin:
                cuts[i] = old
    return {"monetary": tuple(np.maximum.accumulate(cuts).tolist())}


def _small(policy: Policy, summary: Summary) -> list[str]:
    small: list[str] = []
    if not any(customers for customers, _ in summary.segments.values()):
        return small
    for name, dimension in policy.dimensions.items():
        viable = dimension.viable
        if viable is None:
            continue
        # A segment that was not summarised, as it is new, is unknown and not small.
        sizes = {
            label: summary.segments[f"{name}:{label}"]
            for label in dimension.labels
            if f"{name}:{label}" in summary.segments
        }
        total = sum(max(revenue, 0) for _, revenue in sizes.values())
        for label, (customers, revenue) in sizes.items():
            too_few = customers < viable.customers
            if too_few or 100 * Fraction(revenue) < Fraction(viable.revenue_share) * total:
                small.append(f"{name}:{label}")
    return small
