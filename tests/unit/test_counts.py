"""SegmentCounts: customers and revenue of every segment, kept row by row."""

import numpy as np

from models.counts import SegmentCounts
from models.dimensions import dimensions_of
from models.table import NO_LABEL, CustomerTable
from tests.unit.build import Feeder, at, erasure, make_policy, purchase, refund, signup

POLICY = make_policy(dimensions={"one": ("30d", 3, "90d"), "two": ("30d", 3, "90d")})
NEW, POTENTIAL, REGULAR, LAPSED = range(4)


def counted() -> tuple[CustomerTable, SegmentCounts]:
    """Three customers, two of them labelled in both dimensions."""
    table, counts = CustomerTable(POLICY), SegmentCounts(dimensions_of(POLICY))
    rows = table.place(["a", "b", "c"])
    table.label[rows] = [[NEW, LAPSED], [NEW, REGULAR], [NO_LABEL, NO_LABEL]]
    table.gross[rows], table.refunded[rows] = [100, 50, 7], [30, 90, 0]
    counts.update(table, rows)
    return table, counts


def test_rows_are_counted_by_label() -> None:
    """Each labelled row adds one customer and its net revenue, which may be negative; others add nothing."""
    _, counts = counted()
    assert [each.tolist() for each in counts.customers] == [[2, 0, 0, 0], [0, 0, 1, 1]]
    assert [each.tolist() for each in counts.revenue] == [[30, 0, 0, 0], [0, 0, -40, 70]]


def test_a_row_counts_as_it_is_now() -> None:
    """After an update a row counts with its present label and revenue only, however often it is updated."""
    table, counts = counted()
    table.label[0] = [REGULAR, NO_LABEL]
    table.gross[0] = 130
    for _ in range(2):
        counts.update(table, np.array([0]))
    assert [each.tolist() for each in counts.customers] == [[1, 0, 1, 0], [0, 0, 1, 0]]
    assert [each.tolist() for each in counts.revenue] == [[-40, 0, 100, 0], [0, 0, -40, 0]]


def test_rows_that_were_not_updated_keep_their_count() -> None:
    """A change that no update was told of is not counted yet."""
    table, counts = counted()
    table.label[[0, 1], 0] = LAPSED
    counts.update(table, np.array([1]))
    assert counts.customers[0].tolist() == [1, 0, 0, 1]


def test_the_table_may_grow() -> None:
    """Rows beyond those seen before are counted like any other."""
    table, counts = counted()
    rows = table.place([f"n{i}" for i in range(3000)])
    table.label[rows] = POTENTIAL
    table.gross[rows] = 2
    counts.update(table, rows)
    assert [each.tolist() for each in counts.customers] == [[2, 3000, 0, 0], [0, 3000, 1, 1]]
    assert counts.revenue[0].tolist() == [30, 6000, 0, 0]


def test_an_erased_customer_is_counted_no_more() -> None:
    """After an erasure, and for whoever gets the row next, the sizes are those of the customers there are."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0), "5.00"), purchase("b", "2", at(0), "7.00"), refund("b", "3", at(0), "9.00"))
    assert feeder.sizes()["lifecycle:new"] == (2, 300)
    feeder.feed(erasure("a", "4", at(1)))
    assert feeder.sizes()["lifecycle:new"] == (1, -200)
    feeder.feed(signup("c", "5", at(2)))
    assert feeder.sizes()["lifecycle:new"] == (2, -200)
    assert feeder.processor.table.index == {"b": 1, "c": 0}
    feeder.advance(at(93))
    assert feeder.sizes() == {
        "lifecycle:new": (0, 0),
        "lifecycle:potential": (0, 0),
        "lifecycle:regular": (0, 0),
        "lifecycle:lapsed": (2, -200),
    }


def test_refund_only_customers_are_in_no_segment() -> None:
    """A customer without a label is in no size, and neither is their revenue."""
    feeder = Feeder()
    feeder.feed(refund("a", "1", at(0), "9.00"))
    assert set(feeder.sizes().values()) == {(0, 0)}
    feeder.feed(purchase("a", "2", at(1), "4.00"))
    assert feeder.sizes()["lifecycle:new"] == (1, -500)
