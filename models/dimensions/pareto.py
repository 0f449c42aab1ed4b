"""The pareto engine: ABC analysis, customers by how much of all revenue they and those above them make up.

    net revenue                                     label
    at least the highest cut-off                    the first class (A)
    less, but at least the next one                 the next class (B)
    less than the lowest cut-off                    the last class (C)
    no purchase, or no cut-offs yet                 no label

The cut-offs are the population's (models/population.py), in minor units. Time alone moves nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.engines import ParetoPolicy
from models.instants import FOREVER, Instants
from models.money import Converter
from models.table import NO_LABEL, CustomerTable, Rows


class Pareto:
    """Customers by net revenue against the classes' lower bounds; without those nobody has a segment."""

    reads: Final = frozenset(("purchases", "refunds"))

    def __init__(
        self, name: str, policy: ParetoPolicy, converter: Converter, cutoffs: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.name: Final = name
        self.labels: Final = policy.labels
        self._converter = converter
        self._cuts = np.array(cutoffs.get("monetary", ()), dtype=np.int64)
        self._last = len(policy.classes) - 1
        self._known = len(self._cuts) == self._last

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row; ``at`` does not matter."""
        if not self._known:
            return np.full(len(rows), NO_LABEL, dtype=np.int16)
        reached = self._cuts.searchsorted(table.net(rows), side="right")
        return np.where(table.orders[rows] > 0, self._last - reached, NO_LABEL).astype(np.int16)

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """FOREVER: time alone moves nobody."""
        return np.full(len(rows), FOREVER, dtype=np.int64)

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """Net revenue, and the cut-off that the row is at or below."""
        if not table.orders[row]:
            return "no purchase"
        rows = np.array([row], dtype=np.int64)
        net = f"net revenue {self._converter.text(int(table.net(rows)[0]))}"
        if not self._known:
            return f"{net}, no cut-offs yet"
        nearest = min(int(self.label(table, rows, rows)[0]), self._last - 1)
        bound = self._converter.text(int(self._cuts[self._last - 1 - nearest]))
        return f"{net}, {self.labels[nearest]} from {bound}"
