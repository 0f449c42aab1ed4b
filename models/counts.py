"""SegmentCounts: customers, revenue and orders of every segment, kept current by the rows that change."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.table import NO_LABEL, CustomerTable, Labels, Rows

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


class Standing(NamedTuple):
    """What rows of a table count for: their labels by dimension, net revenue and purchases."""

    rows: Rows
    labels: Labels
    net: NDArray[np.int64]
    orders: NDArray[np.int64]

    @classmethod
    def of(cls, table: CustomerTable, rows: Rows) -> Standing:
        """As the rows are now."""
        return cls(rows, table.label[rows], table.net(rows), table.orders[rows])


class SegmentCounts:
    """The size of every segment of a table, retired ones that rows still bear included."""

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
        every = table.rows
        for start in range(0, len(every), _AT_ONCE):
            now = Standing.of(table, every[start : start + _AT_ONCE])
            self._count(now.labels, np.array([np.ones(len(now.rows), dtype=np.int64), now.net, now.orders]))

    def update(self, table: CustomerTable, before: Standing) -> None:
        """Count the rows of ``before`` as they are now instead of as they were then."""
        size, now = len(before.rows), Standing.of(table, before.rows)
        if size:
            amounts = np.ones((3, 2 * size), dtype=np.int64)
            amounts[1:, :size], amounts[1:, size:] = (before.net, before.orders), (now.net, now.orders)
            amounts[:, :size] *= -1
            self._count(np.concatenate([before.labels, now.labels]), amounts)

    def _count(self, labels: Labels, amounts: NDArray[np.int64]) -> None:
        """Add customers, revenue and orders, a column of ``amounts`` for each row of ``labels``."""
        columns = np.where(labels == NO_LABEL, len(self._names), labels + self._first).ravel()
        for size, each in zip(self._sizes, amounts.repeat(labels.shape[1], axis=1), strict=True):
            np.add.at(size, columns, each)

    def sizes(self) -> dict[str, Count]:
        """Every segment's size by ``dimension:label``."""
        return {
            name: Count(*size)
            for name, kept, size in zip(self._names, self._kept, self._sizes.T[:-1].tolist(), strict=True)
            if kept or size[0]
        }
