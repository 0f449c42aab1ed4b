"""Columns that take no more memory than they need, and the ids that rows remember."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.columns import Column, RememberedIds
from models.instants import FOREVER, NEVER

ROWS = 6


@pytest.mark.parametrize(
    ("blank", "stored"),
    [(NEVER, np.int64), (FOREVER, np.int64), (0, np.uint32), (-1, np.int32), (np.nan, np.float64), (0, np.uint64)],
)
def test_a_column_is_untouched_until_it_is_set(blank: float, stored: type) -> None:
    """Blank values leave it so; the first other one sets its row and no other, through growth and clearing."""
    column = Column(blank, stored)
    column.resize(0, 4)
    column[np.array([0, 2])] = np.array([blank, blank])
    column[1] = blank
    column[:] = blank
    assert column.untouched
    column[np.array([1, 3])] = np.array([7, blank])
    assert not column.untouched
    np.testing.assert_array_equal(column[:], np.array([blank, 7, blank, blank], dtype=column[:].dtype))
    column.resize(4, 9)
    column.append(4, 6)
    np.testing.assert_array_equal(column[:6], np.array([blank, 7, *[blank] * 4], dtype=column[:].dtype))
    column.clear(np.array([1]))
    np.testing.assert_array_equal(column[1], column[0])


def test_a_blank_column_takes_no_memory() -> None:
    """However many rows there are: it has one value for all."""
    column = Column(FOREVER)
    column.resize(0, 10**12)
    column.append(0, 10**12)
    column.clear(np.arange(10))
    assert column[np.array([10**11])].tolist() == [FOREVER]


def test_counts_are_read_as_signed() -> None:
    """What is stored as uint32 can be subtracted, and goes up to what the store has room for."""
    column = Column(0, np.uint32)
    column.resize(0, 2)
    column[np.array([0])] = 2**32 - 1
    assert (column[np.array([1])] - column[np.array([0])]).tolist() == [1 - 2**32]
    assert int(column[0]) == 2**32 - 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sets(st.integers(0, ROWS - 1), min_size=1)),
        st.tuples(st.just("clear"), st.sets(st.integers(0, ROWS - 1), min_size=1)),
        st.tuples(st.just("move"), st.integers(1, 20)),
    ),
    max_size=60,
)


@given(st.integers(1, 20), STEPS)
def test_the_latest_ids_are_remembered(most: int, steps: list[tuple[str, object]]) -> None:
    """Of each row as many as there is room for, oldest first; also after they were moved to a table with less."""
    seen, expected = RememberedIds(most), [deque[int](maxlen=most) for _ in range(ROWS)]
    seen.resize(0, ROWS)
    number = 0
    for what, value in steps:
        if what == "move":
            most = min(most, value)  # type: ignore[call-overload]
            moved = RememberedIds(most)
            moved.resize(0, ROWS)
            every = np.arange(ROWS)
            moved.load(every, seen.oldest_first(every), seen.counts(every))
            seen, expected = moved, [deque(ids, maxlen=most) for ids in expected]
        else:
            rows = np.array(sorted(value))  # type: ignore[call-overload]
            if what == "clear":
                seen.clear(rows)
            else:
                ids = np.arange(number + 1, number + 1 + len(rows), dtype=np.uint64)
                number += len(rows)
                seen.add(rows, ids)
                assert seen.has(rows, ids).all()
                assert not seen.has(rows, ids + np.uint64(1000)).any()
            for row in rows.tolist():
                expected[row].clear() if what == "clear" else expected[row].append(int(ids[rows.tolist().index(row)]))
        found = seen.oldest_first(np.arange(ROWS))
        counts = seen.counts(np.arange(ROWS)).tolist()
        assert [ids[:count].tolist() for ids, count in zip(found, counts, strict=True)] == list(map(list, expected))
        assert not found[np.arange(most) >= np.array(counts)[:, None]].any()
        assert seen.any(np.arange(ROWS)).tolist() == [bool(ids) for ids in expected]
        for row, ids in enumerate(expected):
            for each in (*ids, number + 1):
                assert seen.has(np.array([row]), np.array([each], dtype=np.uint64)).tolist() == [each in ids]
