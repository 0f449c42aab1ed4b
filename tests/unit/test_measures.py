"""Measures: their values, and the last instant before time takes them over a bound."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from models.instants import DAY, FOREVER, NEVER, parse
from models.measures import TextLookup, measure
from models.policy import parse_policy
from models.table import NO_VALUE, AttributeValues
from tests.unit.test_engines import table_of

LIFECYCLE = '[dimensions.lifecycle]\nengine = "lifecycle"'
POLICY = parse_policy(f'[attributes]\nnumbers = ["birth_year", "income"]\n{LIFECYCLE}')
YEN = parse_policy(f'[money]\nbase = "JPY"\n{LIFECYCLE}')
START = parse("2024-01-01T00:00:00Z")
MONTH = 2_629_800_000_000
LOWEST, HIGHEST = Decimal("-Infinity"), Decimal("Infinity")


def bought(orders: int = 1, first: int = START, last: int = START, **more: Any) -> dict[str, Any]:
    return {"orders": orders, "first_purchase_at": first, "last_purchase_at": last, **more}


def value_of(name: str, at: int = START, **columns: Any) -> float | None:
    """One customer's value, None if it is absent."""
    found = measure(name, POLICY).value(table_of(POLICY, columns), np.array([0]), np.array([at]))
    assert found.dtype == np.float64
    return None if np.isnan(found[0]) else float(found[0])


def reached(name: str, bound: str | Decimal, at: int = START, **columns: Any) -> bool:
    """Whether one customer's value reaches a bound."""
    scale = measure(name, POLICY).against([Decimal(bound)])
    return bool(scale.reached(table_of(POLICY, columns), np.array([0]), np.array([at]))[0, 0])


def turn(name: str, bound: str, at: int = START, **columns: Any) -> int:
    """The next turn of one customer's comparison with a bound."""
    scale = measure(name, POLICY).against([Decimal(bound)])
    return int(scale.next_turn(table_of(POLICY, columns), np.array([0]), np.array([at]))[0])


@pytest.mark.parametrize(
    ("name", "columns", "value"),
    [
        ("recency_days", bought(2, START - 9 * DAY, START - 3 * DAY // 2), 1.5),
        ("recency_days", bought(last=START + DAY), 0),
        ("recency_days", {}, None),
        ("tenure_days", bought(2, START - 9 * DAY, START - DAY), 9),
        ("tenure_days", {"signed_up_at": START}, None),
        ("orders", bought(4), 4),
        ("orders", {}, 0),
        ("refunds", {"refunds": 2}, 2),
        ("monetary", bought(gross=1234, refunded=234), 1000),
        ("monetary", {"refunded": 5}, -5),
        ("average_order", bought(4, gross=1001, refunded=900), 250.25),
        ("average_order", {"refunded": 5}, None),
        ("orders_per_month", bought(3), 3),
        ("orders_per_month", bought(3, START - MONTH // 2), 3),
        ("orders_per_month", bought(3, START - 2 * MONTH), 1.5),
        ("orders_per_month", {}, None),
        ("satisfaction", {"surveys": 3, "score": 24_150}, 80.5),
        ("satisfaction", {}, None),
        ("age", {"numbers": {"birth_year": 1990}}, 34),
        ("age", {}, None),
        ("income", {"numbers": {"income": -12.5}}, -12.5),
        ("income", {}, None),
    ],
)
def test_values(name: str, columns: dict[str, Any], value: float | None) -> None:
    """A measure is what the documentation says, in minor units if it is money, and absent where there is nothing."""
    assert value_of(name, **columns) == value


@pytest.mark.parametrize("name", ["recency_days", "tenure_days", "average_order", "orders_per_month", "satisfaction",
                                  "age", "income"])  # fmt: skip
def test_what_is_absent_reaches_nothing(name: str) -> None:
    """An absent value is not even above minus infinity, and never turns."""
    for bound in ("-5", "0", "3"):
        assert not reached(name, bound)
        assert turn(name, bound) == FOREVER
    assert not reached(name, LOWEST)


@pytest.mark.parametrize(
    ("name", "columns"),
    [(name, bought(3, gross=100, refunds=1, surveys=1, score=5, numbers={"birth_year": 1990, "income": -3}))
     for name in ("recency_days", "tenure_days", "orders", "refunds", "monetary", "average_order", "orders_per_month",
                  "satisfaction", "age", "income")],
)  # fmt: skip
def test_every_value_lies_between_the_infinities(name: str, columns: dict[str, Any]) -> None:
    """A present value reaches minus infinity and not infinity, at any time."""
    for at in (parse("0001-01-01T00:00:00Z"), START, parse("9999-12-31T23:59:59.999999Z")):
        assert reached(name, LOWEST, at, **columns)
        assert not reached(name, HIGHEST, at, **columns)
        assert turn(name, "Infinity", at, **columns) == FOREVER


@pytest.mark.parametrize(
    ("name", "bound", "columns", "instant"),
    [
        ("recency_days", "90", bought(), START + 90 * DAY),
        ("recency_days", "0.000001", bought(), START + DAY // 1_000_000),
        ("recency_days", "90.5", bought(2, START - DAY), START + 90 * DAY + DAY // 2),
        ("tenure_days", "90", bought(2, START - DAY), START + 89 * DAY),
        ("age", "18", {"numbers": {"birth_year": 2010}}, parse("2028-01-01T00:00:00Z")),
        ("age", "17.5", {"numbers": {"birth_year": 2010}}, parse("2028-01-01T00:00:00Z")),
        ("age", "20", {"numbers": {"birth_year": 1950.5}}, parse("1971-01-01T00:00:00Z")),
    ],
)
def test_ages_rise(name: str, bound: str, columns: dict[str, Any], instant: int) -> None:
    """The bound is reached at an instant and not a microsecond before it, which is the turn."""
    assert not reached(name, bound, instant - 1, **columns)
    assert reached(name, bound, instant, **columns)
    for asked in (NEVER, instant - DAY, instant - 1):
        assert turn(name, bound, asked, **columns) == instant - 1
    assert turn(name, bound, instant, **columns) == FOREVER


@pytest.mark.parametrize(
    ("bound", "orders"),
    [("1", 3), ("0.1", 3), ("0.7", 5), ("0.000001", 1), ("2.999999", 3), ("3", 3), ("1234.567891", 200_000),
     ("0.333333", 4_000_000_000)],
)  # fmt: skip
def test_a_pace_falls(bound: str, orders: int) -> None:
    """The pace holds up to orders months / bound after the first purchase, to the microsecond, and no longer."""
    last = START + int(orders * MONTH / Fraction(bound))
    columns = bought(orders)
    if last > START + 2**60:
        assert turn("orders_per_month", bound, **columns) > START + 2**60
        return
    assert turn("orders_per_month", bound, **columns) == last
    assert reached("orders_per_month", bound, last, **columns)
    assert not reached("orders_per_month", bound, last + 1, **columns)
    assert turn("orders_per_month", bound, last + 1, **columns) == FOREVER


@pytest.mark.parametrize(("bound", "orders"), [("2999999.999999", 4_000_000), ("123456.789123", 200_000)])
def test_a_very_fine_pace_is_close(bound: str, orders: int) -> None:
    """A large bound with many decimals is right within a microsecond an order, and does not overflow."""
    last = START + orders * MONTH / Fraction(bound)
    assert last - orders <= turn("orders_per_month", bound, **bought(orders)) <= last


def test_a_pace_never_reached() -> None:
    """Fewer orders than a bound never reach it, for at least one month counts; all orders reach 0."""
    assert not reached("orders_per_month", "3.5", START, **bought(3))
    assert turn("orders_per_month", "3.5", START, **bought(3)) == FOREVER
    assert reached("orders_per_month", "0", START + 30_000 * DAY, **bought(3))
    assert turn("orders_per_month", "0", START, **bought(3)) == FOREVER


@pytest.mark.parametrize("bound", ["0", "-1", "-999999999999999"])
def test_days_are_never_negative(bound: str) -> None:
    """A bound of 0 days or less is reached at once, even before the purchase."""
    assert reached("recency_days", bound, START - 999 * DAY, **bought())
    assert turn("recency_days", bound, START - 999 * DAY, **bought()) == FOREVER


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_no_bound_is_too_large(instant: str) -> None:
    """A bound beyond all time is never reached, from the first year to the last."""
    columns = bought(last=parse(instant), first=parse(instant), numbers={"birth_year": 1e300})
    for name in ("recency_days", "tenure_days", "age"):
        for bound in ("100000000", "999999999999999.999999"):
            assert not reached(name, bound, parse("9999-12-31T23:59:59Z"), **columns)
            assert turn(name, bound, NEVER, **columns) == FOREVER


def test_money_is_compared_in_minor_units() -> None:
    """A bound is in units of the base currency, to the last of its decimals, and exact for any total."""
    assert reached("monetary", "72.10", gross=7210)
    assert not reached("monetary", "72.10", gross=7209)
    assert not reached("monetary", "72.101", gross=7210)
    assert reached("monetary", "99999999999999.99", gross=9_999_999_999_999_999)
    assert not reached("monetary", "99999999999999.99", gross=9_999_999_999_999_998)
    assert reached("average_order", "33.333333", **bought(3, gross=10_000))
    assert not reached("average_order", "33.333334", **bought(3, gross=10_000))
    table = table_of(YEN, {"gross": 72})
    scale = measure("monetary", YEN).against([Decimal(72), Decimal("72.5")])
    assert scale.reached(table, table.rows, table.rows).tolist() == [[True], [False]]


def test_texts_are_for_people() -> None:
    """Values are cut off after two decimals, money has those of its currency."""
    assert [measure("orders_per_month", POLICY).text(value) for value in (3.0, 0.29, 89.999, 1 / 3, 1e20, 100.0)] == [
        "3", "0.29", "89.99", "0.33", "100000000000000000000", "100",
    ]  # fmt: skip
    assert measure("average_order", POLICY).text(7210.99) == "72.10"
    assert measure("monetary", POLICY).text(-500.0) == "-5.00"
    assert measure("monetary", YEN).text(500.0) == "500"


def test_what_fold_reports_is_named() -> None:
    """Each measure says which events move it."""
    reads = {name: measure(name, POLICY).reads for name in ("recency_days", "monetary", "refunds", "age", "income")}
    assert {name: sorted(each) for name, each in reads.items()} == {
        "recency_days": ["purchases"],
        "monetary": ["purchases", "refunds"],
        "refunds": ["refunds"],
        "age": ["birth_year"],
        "income": ["income"],
    }
    assert measure("satisfaction", POLICY).reads == {"surveys"}


def test_a_lookup_asks_for_each_text_once() -> None:
    """A dictionary that grows is looked up from where it ended; NO_VALUE has an answer too."""
    asked: list[str] = []

    def length(text: str) -> int:
        asked.append(text)
        return len(text)

    lookup, values, others = TextLookup(length, -7), AttributeValues(9), AttributeValues(9, ["ab"])
    assert lookup(values).tolist() == [-7]
    values.code("abc")
    assert lookup(values).tolist() == [3, -7]
    assert lookup(others).tolist() == [2, -7]
    values.code("a")
    values.code("")
    assert lookup(values).tolist() == [3, 1, 0, -7]
    assert lookup(values)[NO_VALUE] == -7
    assert asked == ["abc", "ab", "a", ""]
