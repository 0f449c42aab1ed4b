"""SegmentCounts: customers, revenue and orders of every segment, kept current row by row."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.table import NO_LABEL, CustomerTable, Rows

#: Rows that are counted at once: what is made of them on the way stays near the processor.
_AT_ONCE: Final = 8192


class Count(NamedTuple):
    """Size of a segment: customers, their net revenue in minor units of the base currency, and their purchases."""

    customers: int
    revenue: int
    orders: int = 0

    def plus(self, other: Count) -> Count:
        """Both together."""
        return Count(self.customers + other.customers, self.revenue + other.revenue, self.orders + other.orders)


class SegmentCounts:
    """The size of every segment of a table, retired ones that rows still bear included.

    It remembers each row as it was last counted, so an update needs only the rows that may have changed.
    """

    def __init__(self, table: CustomerTable) -> None:
        self._names = [
            f"{name}:{label}" for name, labels in zip(table.dimensions, table.labels, strict=True) for label in labels
        ]
        #: Whether each is one of the policy's segments; a retired one counts while anybody is in it.
        self._kept = [
            code < len(dimension.labels)
            for dimension, labels in zip(table.policy.dimensions.values(), table.labels, strict=True)
            for code in range(len(labels))
        ]
        #: The column of each dimension's first segment.
        self._first = np.cumsum([0, *map(len, table.labels[:-1])])
        #: Customers, revenue and orders, a column for each segment, and one for all that is in none.
        self._sizes = np.zeros((3, len(self._names) + 1), dtype=np.int64)
        self._label = np.empty((0, len(table.dimensions)), dtype=np.int16)
        self._what = np.empty((3, 0), dtype=np.int64)
        self._grow(len(table.orders))
        every = table.rows
        for start in range(0, len(every), _AT_ONCE):
            self._count(table, every[start : start + _AT_ONCE], self._label[:0], self._what[:, :0])

    def update(self, table: CustomerTable, rows: Rows) -> None:
        """Count ``rows`` as they are now instead of as they were."""
        self._grow(len(table.orders))
        self._count(table, rows, self._label[rows], self._what[:, rows])

    def _grow(self, size: int) -> None:
        missing = size - len(self._label)
        if missing:
            fresh = np.full((missing, self._label.shape[1]), NO_LABEL, dtype=np.int16)
            self._label = np.concatenate([self._label, fresh])
            self._what = np.concatenate([self._what, np.zeros((3, missing), dtype=np.int64)], axis=1)

    def _count(
        self, table: CustomerTable, rows: Rows, old_label: NDArray[np.int16], old_what: NDArray[np.int64]
    ) -> None:
        """Count ``rows`` as they are now; ``old_label`` and ``old_what`` are those that are counted already."""
        label = table.label[rows]
        what = np.array([np.ones(len(rows), dtype=np.int64), table.net(rows), table.orders[rows]])
        labels = np.concatenate([old_label, label])
        columns = np.where(labels == NO_LABEL, len(self._names), labels + self._first).ravel()
        amounts = np.concatenate([-old_what, what], axis=1).repeat(labels.shape[1], axis=1)
        for size, each in zip(self._sizes, amounts, strict=True):
            np.add.at(size, columns, each)
        self._label[rows], self._what[:, rows] = label, what

    def sizes(self) -> dict[str, Count]:
        """Every segment's size by ``dimension:label``."""
        return {
            name: Count(*size)
            for name, kept, size in zip(self._names, self._kept, self._sizes.T[:-1].tolist(), strict=True)
            if kept or size[0]
        }
