"""SegmentCounts: customers and revenue of every segment, kept current row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.dimensions.base import Dimension
from models.table import NO_LABEL, CustomerTable, Rows


class SegmentCounts:
    """How many customers each label has, and their net revenue in minor units of the base currency.

    It remembers each row as it was last counted, so an update needs only the rows that may have changed.
    """

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        self._dimensions = dimensions
        self.customers = [np.zeros(len(d.labels), dtype=np.int64) for d in dimensions]
        self.revenue = [np.zeros(len(d.labels), dtype=np.int64) for d in dimensions]
        self._label = np.empty((0, len(dimensions)), dtype=np.int16)
        self._net = np.empty(0, dtype=np.int64)

    def update(self, table: CustomerTable, rows: Rows) -> None:
        """Count ``rows`` as they are now instead of as they were."""
        missing = len(table.orders) - len(self._net)
        if missing:
            fresh = np.full((missing, len(self._dimensions)), NO_LABEL, dtype=np.int16)
            self._label = np.concatenate([self._label, fresh])
            self._net = np.concatenate([self._net, np.zeros(missing, dtype=np.int64)])
        label, net = table.label[rows], table.net(rows)
        for d in range(len(self._dimensions)):
            self._add(d, self._label[rows, d], self._net[rows], -1)
            self._add(d, label[:, d], net, 1)
        self._label[rows], self._net[rows] = label, net

    def _add(self, dimension: int, labels: NDArray[np.int16], net: NDArray[np.int64], sign: int) -> None:
        labelled = labels != NO_LABEL
        np.add.at(self.customers[dimension], labels[labelled], sign)
        np.add.at(self.revenue[dimension], labels[labelled], sign * net[labelled])
