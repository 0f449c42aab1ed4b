"""A look into customer tables."""

from __future__ import annotations

import numpy as np

from models.columns import Column
from models.table import CustomerTable, Rows


def rows_of(table: CustomerTable) -> dict[str, int]:
    """Every customer's row."""
    return dict(zip(table.index.names(table.rows), table.rows.tolist(), strict=True))


def ids_of(table: CustomerTable, row: int) -> list[int]:
    """The event ids that are remembered of a row's customer, oldest first."""
    rows = np.array([row], dtype=np.int64)
    return [int(number) for number in table.seen.oldest_first(rows)[0, : table.seen.counts(rows)[0]]]


def make_known(table: CustomerTable, rows: Rows) -> None:
    """Let each row's customer have an event."""
    table.seen.add(rows, np.ones(len(rows), dtype=np.uint64))


def columns_of(table: CustomerTable, *names: str) -> dict[str, Column]:
    """The columns of a table by name, of those called so; a dimension's, attribute's or number's with its place."""
    found = {}
    for name in names or vars(table):
        each = getattr(table, name)
        if isinstance(each, Column):
            found[name] = each
        elif isinstance(each, list):
            found |= {f"{name} {place}": column for place, column in enumerate(each) if isinstance(column, Column)}
    return found
