"""The lifecycle dimension: the table in its docstring, exactly at each boundary and a microsecond after it."""

from typing import Any

import numpy as np
import pytest

from models.dimensions import Lifecycle
from models.engines import LifecyclePolicy
from models.instants import FOREVER
from models.table import NO_LABEL, CustomerTable
from tests.unit.build import DAY, at, make_policy

POLICY = make_policy()
LIFECYCLE = Lifecycle("lifecycle", POLICY.dimensions["lifecycle"])


def table_of(*customers: dict[str, Any]) -> CustomerTable:
    """A table of customers ``c0``, ``c1`` … with some columns set."""
    table = CustomerTable(POLICY)
    rows = table.place([f"c{i}" for i in range(len(customers))])
    for row, columns in zip(rows.tolist(), customers, strict=True):
        for name, value in columns.items():
            getattr(table, name)[row] = value
    return table


def label_of(instant: int, **columns: Any) -> str | None:
    """The label of one customer at an instant."""
    (code,) = LIFECYCLE.label(table_of(columns), np.array([0]), np.array([instant])).tolist()
    return None if code == NO_LABEL else LIFECYCLE.labels[code]


def deadline_of(instant: int, **columns: Any) -> int:
    """The next deadline of one customer, not before an instant."""
    (deadline,) = LIFECYCLE.deadline(table_of(columns), np.array([0]), np.array([instant])).tolist()
    return int(deadline)


def buyer(orders: int = 1, last: int = at(0), **more: Any) -> dict[str, Any]:
    return {"orders": orders, "last_purchase_at": last, "first_purchase_at": last, **more}


@pytest.mark.parametrize(
    ("customer", "day", "micros", "label"),
    [
        (buyer(1), 0, 0, "new"),
        (buyer(2), 0, 0, "new"),
        (buyer(3), 0, 0, "regular"),
        (buyer(400), 0, 0, "regular"),
        (buyer(1), 30, 1, "new"),
        (buyer(1), 90, 0, "new"),
        (buyer(1), 90, 1, "lapsed"),
        (buyer(3), 90, 0, "regular"),
        (buyer(3), 90, 1, "lapsed"),
        (buyer(3), 5000, 0, "lapsed"),
        (buyer(1), -10, 0, "new"),  # asked about the time before the purchase
        ({"signed_up_at": at(0)}, 0, 0, "new"),
        ({"signed_up_at": at(0)}, -10, 0, "new"),
        ({"signed_up_at": at(0)}, 30, 0, "new"),
        ({"signed_up_at": at(0)}, 30, 1, "potential"),
        ({"signed_up_at": at(0)}, 90, 0, "potential"),
        ({"signed_up_at": at(0)}, 90, 1, "lapsed"),
        (buyer(1, at(0), signed_up_at=at(-80)), 30, 0, "new"),  # the signup counts for nothing once there is a purchase
        (buyer(3, at(0), signed_up_at=at(-80)), 90, 0, "regular"),
        (buyer(1, at(0), signed_up_at=at(80)), 90, 1, "lapsed"),
        ({}, 0, 0, None),
        ({"refunds": 3, "refunded": 500}, 0, 0, None),
        ({"refunds": 3, "refunded": 500}, 5000, 0, None),
        (buyer(1, refunds=2, refunded=500), 90, 0, "new"),
        (buyer(2, refunds=2), 0, 0, "new"),  # a refund is no order
    ],
)
def test_labels(customer: dict[str, Any], day: int, micros: int, label: str | None) -> None:
    """The label is the table's; it still holds exactly at a boundary and no more a microsecond after it."""
    assert label_of(at(day, micros), **customer) == label


@pytest.mark.parametrize(
    ("customer", "asked", "deadline"),
    [
        (buyer(1), at(0), at(90)),
        (buyer(3), at(0), at(90)),
        (buyer(3), at(90), at(90)),
        (buyer(3), at(90, 1), FOREVER),
        (buyer(3), at(-100), at(90)),
        (buyer(1, at(0), signed_up_at=at(-80)), at(0), at(90)),
        ({"signed_up_at": at(0)}, at(0), at(30)),
        ({"signed_up_at": at(0)}, at(30), at(30)),
        ({"signed_up_at": at(0)}, at(30, 1), at(90)),
        ({"signed_up_at": at(0)}, at(90), at(90)),
        ({"signed_up_at": at(0)}, at(90, 1), FOREVER),
        ({}, at(0), FOREVER),
        ({"refunds": 3}, at(0), FOREVER),
    ],
)
def test_deadlines(customer: dict[str, Any], asked: int, deadline: int) -> None:
    """The deadline is the last instant of the label, asked at any time up to it; FOREVER when time changes nothing."""
    assert deadline_of(asked, **customer) == deadline


@pytest.mark.parametrize(
    "customer",
    [buyer(1), buyer(3), buyer(3, at(0), signed_up_at=at(5)), {"signed_up_at": at(0)}, {"refunds": 1}, {}],
)
def test_a_deadline_is_when_the_label_changes_next(customer: dict[str, Any]) -> None:
    """From any instant on, the label stays until the deadline and is another one a microsecond after it."""
    for asked in [at(day, micros) for day in (-50, 0, 29, 30, 31, 89, 90, 91) for micros in (-1, 0, 1)]:
        deadline, label = deadline_of(asked, **customer), label_of(asked, **customer)
        if deadline == FOREVER:
            assert label_of(at(20_000), **customer) == label
        else:
            assert deadline >= asked
            assert label_of(deadline, **customer) == label
            assert label_of((asked + deadline) // 2, **customer) == label
            assert label_of(deadline + 1, **customer) != label


def test_each_row_is_labelled_at_its_own_instant() -> None:
    """In one call, rows of all sorts get the labels that each gets alone."""
    customers = [buyer(1), buyer(3), {"signed_up_at": at(0)}, {"signed_up_at": at(0)}, {"refunds": 1}, buyer(1)]
    instants = [at(90), at(90, 1), at(30), at(30, 1), at(0), at(90, 1)]
    table = table_of(*customers)
    codes = LIFECYCLE.label(table, table.rows, np.array(instants))
    assert codes.dtype == np.int16
    names = [*LIFECYCLE.labels, None]
    assert [names[code] for code in codes.tolist()] == ["new", "lapsed", "new", "potential", None, "lapsed"]
    assert [names[code] for code in codes.tolist()] == [
        label_of(instant, **customer) for customer, instant in zip(customers, instants, strict=True)
    ]
    assert LIFECYCLE.label(table, np.array([3, 0]), np.array(instants)[[3, 0]]).tolist() == codes[[3, 0]].tolist()


def test_no_rows_have_no_labels() -> None:
    """No rows give no labels and no deadlines."""
    none = np.empty(0, dtype=np.int64)
    assert LIFECYCLE.label(table_of(), none, none).tolist() == []
    assert LIFECYCLE.deadline(table_of(), none, none).tolist() == []


def test_the_policy_sets_the_boundaries() -> None:
    """Other durations and another count of orders move every boundary."""
    dimension = Lifecycle("pace", LifecyclePolicy(potential_after="1d", regular_orders=2, lapse_after="2d"))  # type: ignore[arg-type]
    table = table_of(buyer(1), buyer(2), {"signed_up_at": at(0)})
    codes = [
        dimension.label(table, table.rows, np.full(3, at(0, after))).tolist() for after in (DAY, DAY + 1, 2 * DAY + 1)
    ]
    assert [[dimension.labels[code] for code in row] for row in codes] == [
        ["new", "regular", "new"],
        ["new", "regular", "potential"],
        ["lapsed", "lapsed", "lapsed"],
    ]
    assert dimension.name == "pace"
