"""The rfm engine: scores against cut-offs, groups of codes, and how recency ages."""

import pytest

from models.dimensions import dimensions_of
from models.engines import standard_rfm_groups
from models.instants import DAY, FOREVER, parse
from models.policy import parse_policy
from models.population import Cutoffs
from models.table import NO_LABEL
from tests.unit import test_engines as engines
from tests.unit.test_engines import deadlines_of, labels_of, table_of

START = parse("2024-01-01T00:00:00Z")
POLICY = parse_policy('[dimensions.rfm]\nengine = "rfm"')
DAYS, ORDERS, MONEY = (10, 30, 60, 120), (1, 2, 4, 8), (100, 1000, 5000, 20_000)
CUTOFFS = Cutoffs(scores={"rfm": {"recency": tuple(day * DAY for day in DAYS), "orders": ORDERS, "monetary": MONEY}})
(RFM,) = dimensions_of(POLICY, CUTOFFS)


@pytest.mark.parametrize(
    ("days", "micros", "orders", "net", "scores"),
    [
        (0, 0, 9, 20_001, "R5 F5 M5"),
        (0, 0, 1, 100, "R5 F1 M1"),
        (0, 0, 2, 101, "R5 F2 M2"),
        (10, 0, 4, 5000, "R5 F3 M3"),
        (10, 1, 8, 20_000, "R4 F4 M4"),
        (30, 0, 8, 20_000, "R4 F4 M4"),
        (60, 1, 8, 20_000, "R2 F4 M4"),
        (120, 0, 1, -500, "R2 F1 M1"),
        (120, 1, 1, 0, "R1 F1 M1"),
        (-7, 0, 1, 0, "R5 F1 M1"),
    ],
)
def test_scores(days: int, micros: int, orders: int, net: int, scores: str) -> None:
    """At exactly a cut-off the lower score of F and M, and the better of R, still holds; the group is the code's."""
    customer = {"orders": orders, "gross": max(net, 0), "refunded": max(-net, 0), "last_purchase_at": START}
    table, at = table_of(POLICY, customer), START + days * DAY + micros
    assert RFM.reason(table, 0, at) == scores
    code = scores.replace(" ", "").translate(str.maketrans("", "", "RFM"))
    assert labels_of(RFM, table, at) == [next(name for name, codes in standard_rfm_groups().items() if code in codes)]


def test_a_recency_score_ends_at_its_cut_off() -> None:
    """The deadline is the last purchase and the next cut-off, asked at any time up to it; the worst score stays."""
    table = table_of(POLICY, {"orders": 1, "last_purchase_at": START}, {"refunds": 1})
    for asked, deadline in [(-5, 10), (0, 10), (10, 10), (11, 30), (60, 60), (119, 120), (120, 120)]:
        assert deadlines_of(RFM, table, START + asked * DAY) == [START + deadline * DAY, FOREVER]
    assert deadlines_of(RFM, table, START + 10 * DAY + 1) == [START + 30 * DAY, FOREVER]
    assert deadlines_of(RFM, table, START + 120 * DAY + 1) == [FOREVER, FOREVER]


@pytest.mark.parametrize("scores", [{}, {"recency": (1, 2, 3, 4)}, {"recency": (1,), "orders": (1,), "monetary": (1,)}])
def test_without_cut_offs_nobody_has_a_group(scores: dict[str, tuple[int, ...]]) -> None:
    """Without all twelve cut-offs, and without a purchase, there is no segment and no deadline."""
    (dimension,) = dimensions_of(POLICY, Cutoffs(scores={"rfm": scores}))
    table = table_of(POLICY, {"orders": 1, "last_purchase_at": START}, {})
    assert labels_of(dimension, table, START) == [None, None]
    assert deadlines_of(dimension, table, START) == [FOREVER, FOREVER]
    assert [dimension.reason(table, row, START) for row in (0, 1)] == ["no cut-offs yet", "no purchase"]
    assert labels_of(RFM, table, START)[1] is None


def test_groups_of_ones_own() -> None:
    """A policy may divide the codes otherwise."""
    every = [f"{r}{f}{m}" for r in range(1, 6) for f in range(1, 6) for m in range(1, 6)]
    best, rest = [code for code in every if code > "511"], [code for code in every if code <= "511"]
    policy = parse_policy(f'[dimensions.rfm]\nengine = "rfm"\ngroups = {{best = {best}, rest = {rest}}}')
    (dimension,) = dimensions_of(policy, CUTOFFS)
    table = table_of(
        policy,
        *({"orders": orders, "last_purchase_at": START} for orders in (1, 2)),
        {"orders": 9, "last_purchase_at": 0},
    )
    assert dimension.labels == ("best", "rest")
    assert labels_of(dimension, table, START) == ["rest", "best", "rest"]


def test_groups_equal_a_plain_computation() -> None:
    """Of random customers every label is the group of the scores of one customer."""
    dimension, table, at = engines.DIMENSIONS["rfm"], engines.random_table(22), engines.instants(22, 300)
    cuts = engines.CUTOFFS.scores["rfm"]
    group = {code: i for i, codes in enumerate(standard_rfm_groups().values()) for code in codes}
    codes = dimension.label(table, table.rows, at)
    for row in table.rows.tolist():
        if not table.orders[row]:
            assert codes[row] == NO_LABEL
            continue
        age = max(int(at[row]) - int(table.last_purchase_at[row]), 0)
        net = int(table.gross[row]) - int(table.refunded[row])
        recency = 5 - sum(cut < age for cut in cuts["recency"])
        frequency = 1 + sum(cut < int(table.orders[row]) for cut in cuts["orders"])
        monetary = 1 + sum(cut < net for cut in cuts["monetary"])
        assert codes[row] == group[f"{recency}{frequency}{monetary}"]
