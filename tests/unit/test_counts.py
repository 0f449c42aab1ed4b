"""SegmentCounts: customers, revenue and orders of every segment, kept by the rows that change."""

import numpy as np

from models.counts import Count, SegmentCounts, Standing
from models.table import NO_LABEL, CustomerTable
from tests.support.tables import rows_of
from tests.unit.build import Feeder, at, erasure, make_policy, purchase, refund, signup

POLICY = make_policy(dimensions={"one": ("30d", 3, "90d"), "two": ("30d", 3, "90d")})
NEW, POTENTIAL, REGULAR, LAPSED = range(4)


def counted() -> tuple[CustomerTable, SegmentCounts]:
    """Three customers, two of them labelled in both dimensions."""
    table = CustomerTable(POLICY)
    counts = SegmentCounts(table)
    rows = table.place(["a", "b", "c"])
    before = Standing.of(table, rows)
    table.label[rows] = [[NEW, LAPSED], [NEW, REGULAR], [NO_LABEL, NO_LABEL]]
    table.gross[rows], table.refunded[rows], table.orders[rows] = [100, 50, 7], [30, 90, 0], [2, 1, 5]
    counts.update(table, before)
    return table, counts


def sizes(counts: SegmentCounts, dimension: str) -> dict[str, tuple[int, ...]]:
    """The segments of a dimension that anybody is in: customers, revenue, orders."""
    found = {name.removeprefix(f"{dimension}:"): tuple(size) for name, size in counts.sizes().items()}
    return {label: size for label, size in found.items() if ":" not in label and any(size)}


def test_rows_are_counted_by_label() -> None:
    """Each labelled row adds one customer, its orders and its net revenue, which may be negative; others nothing."""
    _, counts = counted()
    assert sizes(counts, "one") == {"new": (2, 30, 3)}
    assert sizes(counts, "two") == {"regular": (1, -40, 1), "lapsed": (1, 70, 2)}


def test_a_table_may_have_rows_from_the_start() -> None:
    """A table that has just been loaded is counted as a whole; a segment without customers is there with none."""
    table, counts = counted()
    assert SegmentCounts(table).sizes() == counts.sizes()
    empty = SegmentCounts(CustomerTable(POLICY)).sizes()
    labels = ("new", "potential", "regular", "lapsed")
    assert list(empty) == [f"{d}:{label}" for d in ("one", "two") for label in labels]
    assert set(empty.values()) == {Count(0, 0, 0)}


def test_a_retired_segment_is_counted_while_rows_bear_it() -> None:
    """A segment that the policy no longer has shows its customers until the last of them has moved out."""
    table, _ = counted()
    table.label[0, 0] = table.label_code(0, "dormant")
    counts = SegmentCounts(table)
    assert sizes(counts, "one") == {"new": (1, -40, 1), "dormant": (1, 70, 2)}
    before = Standing.of(table, np.array([0]))
    table.label[0, 0] = LAPSED
    counts.update(table, before)
    assert sizes(counts, "one") == {"new": (1, -40, 1), "lapsed": (1, 70, 2)}


def test_sizes_of_shards_add_up() -> None:
    """Two shards' sizes of a segment make the whole; a size without orders is one of an older version."""
    assert Count(1, -5, 2).plus(Count(3, 7)) == Count(4, 2, 2)


def test_a_row_counts_as_it_is_now() -> None:
    """After an update a row counts with its present label and revenue only; if nothing changes, nothing does."""
    table, counts = counted()
    before = Standing.of(table, np.array([0]))
    table.label[0] = [REGULAR, NO_LABEL]
    table.gross[0], table.orders[0] = 130, 3
    counts.update(table, before)
    counts.update(table, Standing.of(table, np.array([0, 1, 2])))
    assert sizes(counts, "one") == {"new": (1, -40, 1), "regular": (1, 100, 3)}
    assert sizes(counts, "two") == {"regular": (1, -40, 1)}


def test_the_table_may_grow() -> None:
    """Rows beyond those seen before are counted like any other."""
    table, counts = counted()
    rows = table.place([f"n{i}" for i in range(3000)])
    before = Standing.of(table, rows)
    table.label[rows] = POTENTIAL
    table.gross[rows] = 2
    counts.update(table, before)
    assert sizes(counts, "one") == {"new": (2, 30, 3), "potential": (3000, 6000, 0)}
    assert sizes(counts, "two") == {"potential": (3000, 6000, 0), "regular": (1, -40, 1), "lapsed": (1, 70, 2)}


def test_an_erased_customer_is_counted_no_more() -> None:
    """After an erasure, and for whoever gets the row next, the sizes are those of the customers there are."""
    feeder = Feeder()
    feeder.feed(purchase("a", "1", at(0), "5.00"), purchase("b", "2", at(0), "7.00"), refund("b", "3", at(0), "9.00"))
    assert feeder.sizes()["lifecycle:new"] == (2, 300)
    feeder.feed(erasure("a", "4", at(1)))
    assert feeder.sizes()["lifecycle:new"] == (1, -200)
    feeder.feed(signup("c", "5", at(2)))
    assert feeder.sizes()["lifecycle:new"] == (2, -200)
    assert rows_of(feeder.processor.table) == {"b": 1, "c": 0}
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
