"""The index of customers is a dictionary and its inverse, however customers come and go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.customers import CustomerIndex

#: Few, so that they come and go; of all lengths, and with bytes that end texts elsewhere.
NAMES = st.sampled_from(
    ["a", "b", "ab", "", "żółw", "żół", "顧客", "a\n", "x" * 300, "x" * 301, "🛒" * 4, *(f"c{i:04}" for i in range(40))]
)
STEPS = st.lists(st.tuples(st.sampled_from(["come", "go", "make room"]), st.lists(NAMES, unique=True)), max_size=30)


def column(rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


@given(STEPS, st.integers(0, 3000))
def test_customers_come_and_go(steps: list[tuple[str, list[str]]], gap: int) -> None:
    """After every step everybody is found where they were put, nobody else is, and rows know whose they are."""
    index, known, free = CustomerIndex(), dict[str, int](), list[int]()
    unused = gap
    for what, names in steps:
        if what == "come":
            new = [name for name in names if name not in known]
            rows = [free.pop() if free else unused + i for i in range(len(new))]
            unused = max([unused, *(row + 1 for row in rows)])
            index.add(new, column(rows))
            known.update(zip(new, rows, strict=True))
        elif what == "go":
            gone = [known.pop(name) for name in names if name in known]
            index.remove(column(gone))
            free += gone
        else:
            index.reserve(100 * len(names))
        asked = [*names, *known, "nobody"]
        assert index.find(asked).tolist() == [known.get(name, -1) for name in asked]
        assert [index.get(name) for name in asked] == [known.get(name) for name in asked]
        assert index.rows().tolist() == sorted(known.values())
        assert index.names(index.rows()) == sorted(known, key=known.__getitem__)
        assert index.names(column(free)) == [""] * len(free)
        assert len(index) == len(known)


@given(st.integers(1, 5_000), st.integers(1, 40))
def test_many_come_and_go(many: int, turns: int) -> None:
    """What is removed leaves no trace: as many as ever fit, and those who stay are found."""
    index = CustomerIndex()
    kept = [f"kept {i}" for i in range(many // 10)]
    index.add(kept, column(list(range(len(kept)))))
    rows = np.arange(len(kept), many + len(kept))
    for turn in range(turns):
        names = [f"{turn} {i}" for i in range(many)]
        index.add(names, rows)
        assert (index.find(names) == rows).all()
        index.remove(rows)
        assert (index.find(names) == -1).all()
    assert index.find(kept).tolist() == list(range(len(kept)))
    assert len(index) == len(kept)


def test_what_cannot_be_is_refused() -> None:
    """A customer has one row and a row one customer; nothing is overwritten, and nobody's row cannot be freed."""
    index = CustomerIndex()
    index.add(["a"], column([3]))
    for names, rows in (
        (["a"], [4]),
        (["b"], [3]),
        (["b"], [-1]),
        (["b"], [2**32]),
        (["b", "c"], [5]),
        (["x" * 70_000], [5]),
    ):
        with pytest.raises(ValueError, match=r"row|id"):
            index.add(names, column(rows))
    for row in (4, -1, 10**6):
        with pytest.raises(ValueError, match="nobody"):
            index.remove(column([row]))
    assert (index["a"], "a" in index, "b" in index, len(index)) == (3, True, False, 1)
    assert index.names(column([3, 4, -1, 10**9])) == ["a", "", "", ""]
    with pytest.raises(KeyError, match="b"):
        index["b"]
    with pytest.raises(TypeError):
        index.find([b"a"])  # type: ignore[list-item]
    with pytest.raises(UnicodeEncodeError):
        index.find(["\ud800"])
