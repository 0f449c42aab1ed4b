"""The rows that are due next, whatever else happens to the table between two looks at them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import table as table_module
from models.instants import FOREVER
from models.table import CustomerTable
from tests.unit.build import make_policy

CUSTOMERS = 40
DEADLINES = st.one_of(st.integers(0, 60), st.just(FOREVER))
ROWS = st.lists(st.integers(0, CUSTOMERS - 1), min_size=1, max_size=6, unique=True)

#: New deadlines, rows forgotten, or a look: how far time moves, how many are taken, and when they are due next.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), ROWS, DEADLINES),
        st.tuples(st.just("clear"), ROWS, st.none()),
        st.tuples(st.just("take"), st.tuples(st.integers(-2, 9), st.integers(1, 7)), DEADLINES),
    ),
    max_size=30,
)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they are looked for often."""
    monkeypatch.setattr(table_module, "_FOUND_AT_ONCE", 8)


@given(st.lists(DEADLINES, min_size=CUSTOMERS, max_size=CUSTOMERS), STEPS)
def test_the_next_rows_are_the_earliest(begin: list[int], steps: list[tuple]) -> None:
    """As many as are asked for, each once; and what is left begins where it is said to."""
    table, now = CustomerTable(make_policy()), 0
    rows = table.place([f"c{i}" for i in range(CUSTOMERS)])

    def give(to: list[int], deadlines: list[int]) -> None:
        for column in table.deadline:
            column[to] = np.array(deadlines)
        table.note_deadlines(np.array(to, dtype=np.int64))

    give(rows.tolist(), begin)
    for what, given_to, deadline in steps:
        if what == "set":
            give(given_to, [deadline] * len(given_to))
        elif what == "clear":
            table.clear(np.array(given_to))
        else:
            ahead, most = given_to
            now = max(0, now + ahead)
            every = np.sort(table.soonest[rows])
            due = every[every < now]
            found, others = table.next_due(now, most)
            assert table.soonest[found].tolist() == due[:most].tolist()
            assert len(set(found.tolist())) == len(found)
            left = every[len(found) :]
            assert min(now, others) == min([now, *left.tolist()])
            assert table.settled(now) == min(now, int(every[0]))
            if len(found):
                give(found.tolist(), [deadline] * len(found))
