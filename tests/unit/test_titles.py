"""Titles of clusters: plain words where a centre is clearly away from the population, and all of them different."""

import numpy as np
import pytest

from models.clusters import logged
from models.titles import number, phrase, titles

MEASURES = ("recency_days", "tenure_days", "orders", "refunds", "monetary", "average_order", "satisfaction", "income")
MEAN = logged(np.array([60.0, 400.0, 3.0, 0.5, 120.0, 40.0, 4.0, 30_000.0]))


def of(*centres: list[float]) -> tuple[str, ...]:
    return titles(MEASURES, np.array(centres), MEAN, np.full(len(MEASURES), 0.5))


def away(measure: str, z: float) -> list[float]:
    """A centre that is so many deviations from the population's in one measure."""
    return [z if name == measure else 0.0 for name in MEASURES]


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        ("recency_days", ["very recent", "recent", "average", "absent", "long absent"]),
        ("tenure_days", ["very new", "new", "average", "long known", "very long known"]),
        ("orders", ["very infrequent", "infrequent", "average", "frequent", "very frequent"]),
        ("refunds", ["hardly any refunds", "few refunds", "average", "many refunds", "very many refunds"]),
        ("monetary", ["very low spend", "low spend", "average", "high spend", "very high spend"]),
        ("average_order", ["very small orders", "small orders", "average", "large orders", "very large orders"]),
        ("satisfaction", ["very dissatisfied", "dissatisfied", "average", "satisfied", "very satisfied"]),
        ("income", ["very low income", "low income", "average", "high income", "very high income"]),
    ],
)
def test_every_measure_has_words(measure: str, said: list[str]) -> None:
    """From half a deviation on, and stronger ones from one and a half on; a numeric attribute is high or low."""
    for z, word in zip((-1.5, -0.5, 0.0, 0.5, 1.5), said, strict=True):
        assert of(away(measure, z), [9.0] * len(MEASURES))[0] == word
    assert of(away(measure, 0.49), away(measure, -0.49))[0].startswith("average (")


def test_words_stand_in_the_order_of_the_features() -> None:
    """As the policy names them."""
    best = [-1.0, 0.0, 0.8, 0.0, 2.0, 0.0, 0.0, 0.0]
    assert of(best, away("orders", -1))[0] == "recent, frequent, very high spend"


def test_equal_words_are_told_apart_by_numbers() -> None:
    """By the measure in which they differ most, in its own units; by more where that is not enough."""
    few, many = away("orders", 0.6), away("orders", 1.4)
    assert of(few, away("income", 2), many) == ("frequent (4.4 orders)", "very high income", "frequent (7.1 orders)")
    three = of([0.0] * 8, away("monetary", 0.3), [*away("monetary", 0.3)[:-1], 0.1])
    assert len(set(three)) == 3
    assert three[0].startswith("average (120 spent")
    assert of([0.0] * 8, [0.0] * 8, away("orders", 1))[:2] == ("average (no. 1)", "average (no. 2)")


def test_no_two_titles_are_equal() -> None:
    """Whatever the centres."""
    rng = np.random.default_rng(1)
    for clusters in (2, 5, 50):
        for spread in (0.0, 0.01, 0.5, 2.0):
            found = of(*(rng.normal(0, spread, (clusters, len(MEASURES)))).tolist())
            assert len(set(found)) == clusters


def test_measures_are_told_in_words() -> None:
    """In their own units, with the singular of one."""
    told = {"recency_days": 12.0, "orders": 8.0, "monetary": 310.0, "household_size": 2.5}
    assert [phrase(name, value) for name, value in told.items()] == [
        "last purchase about 12 days ago",
        "8 orders",
        "310 spent",
        "household size 2.5",
    ]
    assert phrase("recency_days", 1.0) == "last purchase about 1 day ago"
    assert phrase("satisfaction", 4.25) == "satisfaction 4.2"
    assert phrase("tenure_days", 700.4) == "first purchase about 700 days ago"
    assert phrase("refunds", 1.04) == "1 refund"
    assert phrase("average_order", 12.0) == "12 an order"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-1e-9, "0"), (0.25, "0.25"), (0.999, "1"), (9.94, "9.9"), (9.96, "10"), (100.0, "100"), (-3.0, "-3")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    """No digits that say nothing, and no zero cut off a whole number."""
    assert number(value) == text
