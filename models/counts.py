"""SegmentCounts: customers, revenue and orders of every segment, kept current row by row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.table import NO_LABEL, CustomerTable, Rows


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
        self._names = [[f"{name}:{label}" for label in table.labels[d]] for d, name in enumerate(table.dimensions)]
        #: How many of each dimension's segments are the policy's; a retired one counts while anybody is in it.
        self._kept = [len(dimension.labels) for dimension in table.policy.dimensions.values()]
        #: For each dimension, a row for each of customers, revenue and orders, a column for each segment.
        self._sizes = [np.zeros((3, len(names)), dtype=np.int64) for names in self._names]
        self._label = np.empty((0, len(self._names)), dtype=np.int16)
        self._what = np.empty((3, 0), dtype=np.int64)
        self.update(table, table.rows)

    def update(self, table: CustomerTable, rows: Rows) -> None:
        """Count ``rows`` as they are now instead of as they were."""
        counted = len(self._label)
        missing = len(table.orders) - counted
        if missing:
            fresh = np.full((missing, len(self._names)), NO_LABEL, dtype=np.int16)
            self._label = np.concatenate([self._label, fresh])
            self._what = np.concatenate([self._what, np.zeros((3, missing), dtype=np.int64)], axis=1)
        label = table.label[rows]
        what = np.array([np.ones(len(rows), dtype=np.int64), table.net(rows), table.orders[rows]])
        for d in range(len(self._names)):
            if counted:
                self._add(d, self._label[rows, d], -self._what[:, rows])
            self._add(d, label[:, d], what)
        self._label[rows], self._what[:, rows] = label, what

    def _add(self, dimension: int, labels: NDArray[np.int16], what: NDArray[np.int64]) -> None:
        labelled = labels != NO_LABEL
        for size, amounts in zip(self._sizes[dimension], what, strict=True):
            np.add.at(size, labels[labelled], amounts[labelled])

    def sizes(self) -> dict[str, Count]:
        """Every segment's size by ``dimension:label``."""
        return {
            name: Count(*size)
            for names, sizes, kept in zip(self._names, self._sizes, self._kept, strict=True)
            for code, (name, size) in enumerate(zip(names, sizes.T.tolist(), strict=True))
            if code < kept or size[0]
        }
