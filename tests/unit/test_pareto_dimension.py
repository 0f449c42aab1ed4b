"""The pareto engine: net revenue against the classes' lower bounds."""

import pytest

from models.dimensions import dimensions_of
from models.instants import FOREVER
from models.policy import parse_policy
from models.population import Cutoffs
from models.table import NO_LABEL
from tests.unit import test_engines as engines
from tests.unit.test_engines import deadlines_of, labels_of, table_of

POLICY = parse_policy('[dimensions.value]\nengine = "pareto"\nclasses = {a = 80, b = 15, c = 5}')


def cutoffs(*cuts: int) -> Cutoffs:
    return Cutoffs(scores={"value": {"monetary": cuts}})


@pytest.mark.parametrize(
    ("gross", "refunded", "label"),
    [(0, 0, "c"), (999, 0, "c"), (1000, 0, "b"), (64_099, 0, "b"), (64_100, 100, "b"), (64_100, 0, "a"),
     (2**62, 0, "a"), (0, 500, "c")],
)  # fmt: skip
def test_a_class_begins_at_its_cut_off(gross: int, refunded: int, label: str) -> None:
    """Net revenue of at least a cut-off is in the class above it, less than the lowest in the last class."""
    (dimension,) = dimensions_of(POLICY, cutoffs(1000, 64_100))
    table = table_of(POLICY, {"orders": 1, "gross": gross, "refunded": refunded}, {"refunded": 5}, {})
    assert labels_of(dimension, table, 0) == [label, None, None]
    assert deadlines_of(dimension, table, 0) == [FOREVER] * 3


def test_equal_cut_offs_leave_a_class_empty() -> None:
    """Where two cut-offs are one value, who reaches it is in the higher class."""
    (dimension,) = dimensions_of(POLICY, cutoffs(1000, 1000))
    table = table_of(POLICY, {"orders": 1, "gross": 1000}, {"orders": 1, "gross": 999})
    assert labels_of(dimension, table, 0) == ["a", "c"]


@pytest.mark.parametrize("known", [Cutoffs(), cutoffs(), cutoffs(5), cutoffs(1, 2, 3)])
def test_without_cut_offs_nobody_has_a_class(known: Cutoffs) -> None:
    """Before the first population, or with cut-offs of other classes, there are no segments."""
    (dimension,) = dimensions_of(POLICY, known)
    table = table_of(POLICY, {"orders": 1, "gross": 1000}, {})
    assert labels_of(dimension, table, 0) == [None, None]
    assert dimension.reason(table, 0, 0) == "net revenue 10.00, no cut-offs yet"
    assert dimension.reason(table, 1, 0) == "no purchase"


def test_reasons() -> None:
    """Net revenue and the cut-off it reached; for the last class the one it did not."""
    (dimension,) = dimensions_of(POLICY, cutoffs(1000, 64_000))
    table = table_of(POLICY, *({"orders": 1, "gross": gross} for gross in (81_200, 5000, 999)))
    assert [dimension.reason(table, row, 0) for row in range(3)] == [
        "net revenue 812.00, a from 640.00",
        "net revenue 50.00, b from 10.00",
        "net revenue 9.99, b from 10.00",
    ]


def test_classes_equal_a_plain_computation() -> None:
    """Of random customers every label is the first class whose cut-off one customer's net revenue reaches."""
    dimension, table = engines.DIMENSIONS["value"], engines.random_table(21)
    ascending = engines.CUTOFFS.scores["value"]["monetary"]
    codes = dimension.label(table, table.rows, table.rows)
    for row in table.rows.tolist():
        net = int(table.gross[row]) - int(table.refunded[row])
        reached = [code for code, cut in enumerate(reversed(ascending)) if net >= cut]
        expected = min(reached, default=len(ascending)) if table.orders[row] else NO_LABEL
        assert codes[row] == expected
