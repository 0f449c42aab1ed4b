"""The population: distributions against NumPy, merging, cutting, and the cut-offs that follow."""

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from models.errors import StateError
from models.instants import NEVER
from models.policy import Policy
from models.population import (
    QUINTILES,
    SUMMARISED,
    Cutoffs,
    Distribution,
    Summary,
    cutoffs_of,
    summary_of,
)
from models.table import CustomerTable
from tests.unit.build import DAY, Feeder, at, make_policy, purchase, refund, signup

SCORED = """
[dimensions.value]
engine = "pareto"
classes = { A = 80, B = 15, C = 5 }
margin = 2
[dimensions.rfm]
engine = "rfm"
margin = 2
"""
SHARES = [*QUINTILES, Fraction(0), Fraction(1, 1000), Fraction(1, 3), Fraction(999, 1000), Fraction(1)]


def scored(margin: str = "2", more: str = "") -> Policy:
    """The lifecycle, ABC classes and RFM groups."""
    return make_policy(more=SCORED.replace("margin = 2", f"margin = {margin}") + more)


def samples() -> list[np.ndarray]:
    """Values of many sorts: few, many, equal, negative, huge."""
    rng = np.random.default_rng(7)
    return [
        np.array([5]),
        np.array([3, 3, 3, 3]),
        np.arange(-4, 5),
        rng.integers(-50, 50, 1000),
        rng.integers(0, 5, 997),
        (rng.pareto(1.2, 5000) * 1000).astype(np.int64),
        rng.integers(-(2**40), 2**40, 321),
    ]


def equal(one: Distribution, other: Distribution) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("values", "counts", "sums"))


# Distributions


@pytest.mark.parametrize("observed", samples(), ids=lambda values: f"{len(values)} values")
def test_a_quantile_is_the_inverse_of_the_distribution(observed: np.ndarray) -> None:
    """It is what NumPy calls inverted_cdf, for any share that is exact in binary or not."""
    distribution = Distribution.of(observed)
    for share in SHARES:
        needed = max(1, -(-len(observed) * share.numerator // share.denominator))
        assert distribution.quantile(share) == np.sort(observed)[needed - 1]
    for share in (0.25, 0.5, 0.75, 0.125):
        assert distribution.quantile(Fraction(share)) == np.quantile(observed, share, method="inverted_cdf")


def test_a_distribution_counts_exactly() -> None:
    """Each value once, ascending, with how many have it and what they have together."""
    distribution = Distribution.of(np.array([5, -2, 5, 0, 5]))
    assert distribution.values.tolist() == [-2, 0, 5]
    assert distribution.counts.tolist() == [1, 1, 3]
    assert distribution.sums.tolist() == [-2, 0, 15]
    assert distribution.size == 5
    assert distribution.rank(5) == (Fraction(2, 5), 1)
    assert distribution.rank(3) == (Fraction(2, 5), Fraction(2, 5))
    assert distribution.rank(-9) == (0, 0)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_order_of_merging_does_not_matter(parts: int) -> None:
    """However customers are spread over shards, and whichever comes first, the whole is the same."""
    rng = np.random.default_rng(3)
    for observed in samples():
        whole = Distribution.of(observed)
        split = [Distribution.of(observed[:0])]
        split += [Distribution.of(each) for each in np.array_split(rng.permutation(observed), parts)]
        assert equal(Distribution.merged(split), whole)
        assert equal(Distribution.merged(split[::-1]), whole)
        assert equal(Distribution.merged([Distribution.merged(split[:2]), *split[2:]]), whole)


@pytest.mark.parametrize("bins", [1, 4, 10, 100])
def test_a_cut_distribution_is_off_by_at_most_one_part(bins: int) -> None:
    """It has about ``bins`` values, the same customers and sums, and quantiles between those a part below and at it."""
    for observed in samples():
        whole = Distribution.of(observed)
        small = whole.cut(bins)
        assert len(small.values) <= max(bins, 1)
        assert (small.size, small.sums.sum()) == (whole.size, whole.sums.sum())
        assert set(small.values.tolist()) <= set(whole.values.tolist())
        assert small.values[-1] == whole.values[-1]
        for share in SHARES:
            found = small.quantile(share)
            assert found >= whole.quantile(share)
            assert found <= whole.quantile(min(share + Fraction(1, bins) + Fraction(1, whole.size), Fraction(1)))


def test_what_is_small_is_not_cut() -> None:
    """As many values as parts stay as they are."""
    whole = Distribution.of(np.arange(10))
    assert whole.cut(10) is whole
    assert len(whole.cut(9).values) <= 9


def leaders_by_loop(observed: np.ndarray, share: Fraction) -> int:
    """Who leads, one customer after the other from the top; equal customers stand or fall together."""
    total = sum(value for value in observed.tolist() if value > 0)
    if not total:
        return int(max(observed)) + 1
    reached = 0
    for value in sorted(observed.tolist(), reverse=True):
        reached += max(value, 0)
        if reached >= total * share:
            return int(value)
    raise AssertionError("all of them make up everything")


@pytest.mark.parametrize("observed", samples(), ids=lambda values: f"{len(values)} values")
def test_leaders_make_up_the_share(observed: np.ndarray) -> None:
    """The cut-off is the value of the customer with whom the share is reached."""
    distribution = Distribution.of(observed)
    for share in (Fraction(1, 100), Fraction(4, 5), Fraction(95, 100), Fraction(1)):
        cut = distribution.leaders(share)
        assert cut == leaders_by_loop(observed, share)
        above, from_it = distribution.share_from(cut)
        assert above < share <= from_it


def test_nobody_leads_without_revenue() -> None:
    """If everything was refunded, nobody is in any class but the last."""
    distribution = Distribution.of(np.array([-5, 0, -1]))
    assert distribution.leaders(Fraction(4, 5)) == 1
    assert distribution.share_from(0) == (0, 0)


# Summaries


def fed(policy: Policy) -> Feeder:
    """Ten buyers who paid 1, 2 … 10, one who only signed up and one who only returned something."""
    feeder = Feeder(policy)
    feeder.feed(*(purchase(f"c{i}", f"{i}", at(i), f"{i}.00") for i in range(1, 11)))
    feeder.feed(signup("s", "s", at(11)), refund("r", "r", at(11), "5.00"), refund("c1", "r1", at(11), "3.00"))
    return feeder


def test_a_summary_is_of_those_who_bought() -> None:
    """Age of the last purchase, purchases, and net revenue; everybody with a segment counts in it."""
    summary = summary_of(fed(make_policy()).processor.table, at(5))
    assert summary.distributions["recency"].values.tolist() == [0, DAY, 2 * DAY, 3 * DAY, 4 * DAY]
    assert summary.distributions["recency"].counts.tolist() == [6, 1, 1, 1, 1]
    assert (summary.distributions["orders"].values.tolist(), summary.distributions["orders"].size) == ([1], 10)
    assert summary.distributions["monetary"].values.tolist() == [-200, *range(200, 1100, 100)]
    assert summary.segments["lifecycle:new"] == (11, 5200)
    assert summary.segments["lifecycle:lapsed"] == (0, 0)


def test_a_summary_survives_storing() -> None:
    """Its JSON says all of it; what is damaged is told as such."""
    summary = summary_of(fed(make_policy()).processor.table, at(20))
    again = Summary.parse(summary.json)
    assert again.segments == summary.segments
    assert all(equal(again.distributions[name], summary.distributions[name]) for name in SUMMARISED)
    assert Summary.parse(Summary.empty().json).json == Summary.empty().json
    for damaged in (
        b"",
        b"{",
        b"[]",
        b"{}",
        summary.json.replace(b"recency", b"age"),
        summary.json.replace(b"-200", b'"x"'),
    ):
        with pytest.raises(StateError, match="a stored population summary is damaged"):
            Summary.parse(damaged)


def test_summaries_of_shards_add_up() -> None:
    """The whole is as if all customers were on one shard; an empty shard adds nothing."""
    table = fed(make_policy()).processor.table
    one = summary_of(table, at(20))
    both = Summary.merged([one, Summary.empty(), one])
    assert both.distributions["orders"].counts.tolist() == [20]
    assert both.segments["lifecycle:new"] == (22, 10_400)
    nobody = Summary.merged([Summary.empty(), summary_of(CustomerTable(make_policy()), at(0))])
    assert nobody.distributions["orders"].size == 0


# Cut-offs


def buyers(revenue: np.ndarray, segments: Mapping[str, tuple[int, int]] | None = None) -> Summary:
    """Buyers of whom only revenue, in minor units, tells them apart."""
    ones = Distribution.of(np.ones(len(revenue), dtype=np.int64))
    return Summary({"recency": ones, "orders": ones, "monetary": Distribution.of(revenue)}, segments or {})


def test_quintiles_and_classes() -> None:
    """RFM cut-offs are quintiles; ABC cut-offs the revenue from which on customers make up the classes' shares."""
    revenue = np.arange(1, 101, dtype=np.int64)
    cutoffs = cutoffs_of(scored(), buyers(revenue), 7, Cutoffs())
    assert cutoffs.as_of == 7
    assert cutoffs.scores["rfm"] == {"recency": (1,) * 4, "orders": (1,) * 4, "monetary": (20, 40, 60, 80)}
    descending = revenue[::-1].cumsum()
    upto = {share: int(revenue[::-1][np.searchsorted(descending, 5050 * share / 100)]) for share in (80, 95)}
    assert cutoffs.scores["value"] == {"monetary": (upto[95], upto[80])}


def test_nobody_has_no_cutoffs() -> None:
    """Before the first purchase there is nothing to compare with."""
    cutoffs = cutoffs_of(scored(), Summary.empty(), 7, Cutoffs())
    assert cutoffs == Cutoffs(as_of=7)
    assert Cutoffs().as_of == NEVER


@pytest.mark.parametrize("moved", [0, 1, 2, 3, 10])
def test_a_cutoff_stays_within_its_margin(moved: int) -> None:
    """While a cut-off is off by no more than two percentile points it stays; then it jumps to where it should be."""
    before = cutoffs_of(scored(), buyers(np.arange(1000, 2000, dtype=np.int64)), 1, Cutoffs())
    shifted = buyers(np.arange(1000, 2000, dtype=np.int64) + 10 * moved)
    after = cutoffs_of(scored(), shifted, 2, before)
    fresh = cutoffs_of(scored(), shifted, 2, Cutoffs())
    assert after.scores["rfm"]["monetary"] == (before if moved <= 2 else fresh).scores["rfm"]["monetary"]
    exact = cutoffs_of(scored("0"), shifted, 2, before)
    assert exact.scores["rfm"]["monetary"] == fresh.scores["rfm"]["monetary"]


def test_a_cutoff_that_stays_is_within_its_margin() -> None:
    """Whatever was before, each cut-off of after is within the margin of its share of the population."""
    rng = np.random.default_rng(11)
    previous = Cutoffs()
    for instant in range(12):
        summary = buyers((rng.pareto(1.5, 3000) * (10_000 + 400 * instant)).astype(np.int64))
        previous = cutoffs_of(scored(), summary, instant, previous)
        monetary = summary.distributions["monetary"]
        for cut, share in zip(previous.scores["rfm"]["monetary"], QUINTILES, strict=True):
            below, upto = monetary.rank(cut)
            assert below - Fraction(2, 100) <= share <= upto + Fraction(2, 100)
        for cut, share in zip(previous.scores["value"]["monetary"], (Fraction(95, 100), Fraction(4, 5)), strict=True):
            above, from_it = monetary.share_from(cut)
            assert above - Fraction(2, 100) <= share <= from_it + Fraction(2, 100)
        for cuts in (*previous.scores["rfm"].values(), *previous.scores["value"].values()):
            assert all(low <= high for low, high in pairwise(cuts))


def test_another_number_of_classes_begins_anew() -> None:
    """Cut-offs of a policy with other classes say nothing about these."""
    summary = buyers(np.arange(1, 101, dtype=np.int64))
    previous = Cutoffs(1, {"value": {"monetary": (5,)}, "rfm": {"monetary": (20, 40)}})
    after = cutoffs_of(scored(), summary, 2, previous)
    assert after.scores["value"] == cutoffs_of(scored(), summary, 2, Cutoffs()).scores["value"]
    assert len(after.scores["rfm"]["monetary"]) == 4


VIABLE = """
[dimensions.value.viable]
customers = 3
revenue_share = 10
"""


@pytest.mark.parametrize(
    ("sizes", "small"),
    [
        ({"A": (3, 900), "B": (3, 100), "C": (3, 0)}, {"C"}),
        ({"A": (3, 900), "B": (2, 100), "C": (4, 99)}, {"B", "C"}),
        ({"A": (3, 1000), "B": (3, 112), "C": (3, -50)}, {"C"}),
        ({"A": (3, 1000), "B": (3, 111), "C": (3, -50)}, {"B", "C"}),
        ({"A": (9, 1), "B": (9, 1), "C": (9, 1)}, set()),
        ({"A": (9, 0), "B": (9, 0), "C": (9, 0)}, set()),
        ({"A": (5, 100)}, set()),  # segments that were not summarised are new, and unknown
        ({}, set()),
    ],
)
def test_small_segments(sizes: dict[str, tuple[int, int]], small: set[str]) -> None:
    """Too few customers, or too small a share of what is positive of the dimension's revenue; nothing for nobody."""
    segments = {f"value:{label}": size for label, size in sizes.items()}
    policy = make_policy(more=SCORED.replace("[dimensions.rfm]", f"{VIABLE}[dimensions.rfm]"))
    cutoffs = cutoffs_of(policy, buyers(np.arange(1, 5, dtype=np.int64), segments), 1, Cutoffs())
    assert cutoffs.small == {f"value:{label}" for label in small}


def test_cutoffs_survive_storing() -> None:
    """What is stored with an activation is what was."""
    cutoffs = Cutoffs(5, {"rfm": {"recency": (1, 2, 2, 9)}, "value": {}}, frozenset(("value:C",)))
    assert Cutoffs.from_plain(cutoffs.plain()) == cutoffs
    assert Cutoffs.from_plain(Cutoffs().plain()) == Cutoffs()


def test_nobody_leads_where_nothing_is_positive() -> None:
    """Who got back all that they paid, or more, is not in the first class."""
    everybody = Distribution.of(np.array([-500, -44, 0], dtype=np.int64))
    assert everybody.leaders(Fraction(80, 100)) > 0
    assert Distribution.of(np.array([-500, -44], dtype=np.int64)).leaders(Fraction(80, 100)) > 0
