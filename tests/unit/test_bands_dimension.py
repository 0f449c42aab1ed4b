"""The bands engine: the last lower bound that a number reaches, and when time takes it over the next one."""

from bisect import bisect_right
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from models.dimensions import dimensions_of
from models.instants import DAY, FOREVER, parse
from models.policy import BandsPolicy, parse_policy
from models.table import NO_LABEL, CustomerTable
from tests.unit import test_engines as engines
from tests.unit.test_engines import deadlines_of, labels_of, table_of

START = parse("2024-01-01T00:00:00Z")


def policy_of(of: str, bands: str) -> Any:
    text = f'[attributes]\nnumbers = ["birth_year", "income"]\n[dimensions.band]\nengine = "bands"\nof = "{of}"\n'
    return parse_policy(f"{text}bands = {bands}")


@pytest.mark.parametrize(
    ("income", "label"),
    [(-1, None), (0, "low"), (19_999.99, "low"), (20_000, "middle"), (60_000.49, "middle"), (60_000.5, "high"),
     (1e300, "high"), (np.nan, None)],
)  # fmt: skip
def test_a_band_begins_at_its_bound(income: float, label: str | None) -> None:
    """A band holds from its lower bound up to the next; below the first, and without a number, there is none."""
    policy = policy_of("income", "{low = 0, middle = 20000, high = 60000.5}")
    table = table_of(policy, {"numbers": {"income": income}})
    assert labels_of(dimensions_of(policy)[0], table, START) == [label]


def test_recency_bands_end_at_an_instant() -> None:
    """The next band begins so many days after the last purchase; the deadline is the microsecond before."""
    policy = policy_of("recency_days", "{hot = 0, warm = 30, cold = 90.5}")
    (dimension,) = dimensions_of(policy)
    table = table_of(policy, {"orders": 1, "last_purchase_at": START}, {})
    warm, cold = START + 30 * DAY, START + 90 * DAY + DAY // 2
    for asked, label, deadline in [
        (START - 5 * DAY, "hot", warm - 1),
        (START, "hot", warm - 1),
        (warm - 1, "hot", warm - 1),
        (warm, "warm", cold - 1),
        (cold - 1, "warm", cold - 1),
        (cold, "cold", FOREVER),
    ]:
        assert labels_of(dimension, table, asked) == [label, None]
        assert deadlines_of(dimension, table, asked) == [deadline, FOREVER]


def test_a_pace_falls_through_its_bands() -> None:
    """Orders a month become fewer as time passes: the higher band holds up to an instant, that included."""
    policy = policy_of("orders_per_month", "{slow = 0.5, fast = 2}")
    (dimension,) = dimensions_of(policy)
    month = 2_629_800_000_000
    table = table_of(policy, {"orders": 4, "first_purchase_at": START, "last_purchase_at": START})
    for asked, label, deadline in [
        (START, "fast", START + 2 * month),
        (START + 2 * month, "fast", START + 2 * month),
        (START + 2 * month + 1, "slow", START + 8 * month),
        (START + 8 * month + 1, None, FOREVER),
    ]:
        assert labels_of(dimension, table, asked) == [label]
        assert deadlines_of(dimension, table, asked) == [deadline]


def test_everybody_is_older_at_new_year() -> None:
    """An age band ends with the year, in UTC."""
    policy = policy_of("age", "{young = 0, adult = 18}")
    (dimension,) = dimensions_of(policy)
    table = table_of(policy, {"numbers": {"birth_year": 2007}}, {"numbers": {"birth_year": 1990}}, {})
    new_year = parse("2025-01-01T00:00:00Z")
    assert labels_of(dimension, table, new_year - 1) == ["young", "adult", None]
    assert deadlines_of(dimension, table, START) == [new_year - 1, FOREVER, FOREVER]
    assert labels_of(dimension, table, new_year) == ["adult", "adult", None]


def test_reasons() -> None:
    """The value, as people write it, and its band."""
    policy = policy_of("average_order", "{small = 5, middle = 50, large = 150}")
    (dimension,) = dimensions_of(policy)
    table = table_of(policy, *({"orders": 1, "gross": gross} for gross in (7210, 400, 15_000)), {})
    assert [dimension.reason(table, row, START) for row in range(4)] == [
        "average_order 72.10 is in [50, 150)",
        "average_order 4.00 is below 5",
        "average_order 150.00 is at least 150",
        "no average_order",
    ]


def plain(table: CustomerTable, row: int, of: str, at: int) -> Fraction | None:
    """One customer's value, computed with fractions."""
    orders = int(table.orders[row])
    if of == "age":
        year = float(table.number[table.numbers.index("birth_year")][row])
        return None if np.isnan(year) else datetime.fromtimestamp(at // 1_000_000, UTC).year - Fraction(year)
    if of == "income":
        number = float(table.number[table.numbers.index("income")][row])
        return None if np.isnan(number) else Fraction(number)
    if of in ("orders", "refunds"):
        return Fraction(int(getattr(table, of)[row]))
    if of == "monetary":
        return Fraction(int(table.gross[row]) - int(table.refunded[row]), 100)
    if of == "satisfaction":
        surveys = int(table.surveys[row])
        return Fraction(int(table.score[row]), surveys) / 100 if surveys else None
    if not orders:
        return None
    since = int((table.last_purchase_at if of == "recency_days" else table.first_purchase_at)[row])
    if of == "average_order":
        return Fraction(int(table.gross[row]), orders) / 100
    if of == "orders_per_month":
        return orders / max(Fraction(1), Fraction(at - since, 2_629_800_000_000))
    return Fraction(max(at - since, 0), DAY)


@pytest.mark.parametrize("name", [n for n, each in engines.POLICY.dimensions.items() if isinstance(each, BandsPolicy)])
def test_bands_equal_a_plain_computation(name: str) -> None:
    """Of random customers every label is that of one customer's value among the bounds, in exact arithmetic."""
    engine = engines.POLICY.dimensions[name]
    assert isinstance(engine, BandsPolicy)
    bounds = [Fraction(bound) for bound in engine.bands.values()]
    table, at = engines.random_table(20), engines.instants(20, 300)
    codes = engines.DIMENSIONS[name].label(table, table.rows, at)
    for row in table.rows.tolist():
        value = plain(table, row, engine.of, int(at[row]))
        assert codes[row] == (NO_LABEL if value is None else bisect_right(bounds, value) - 1)
