"""The rfm engine: recency, frequency and monetary scored 1 to 5 against the population, and codes to groups.

A score is one more than the cut-offs below the value, and for recency, where less is better, 5 less the cut-offs below
the time since the last purchase. So a customer keeps a recency score up to the instant at which a cut-off is reached,
and loses it after that. The cut-offs are the population's quintiles (models/population.py); without them, or without a
purchase, there is no label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.engines import RfmPolicy
from models.instants import FOREVER, NEVER, Instants
from models.population import SUMMARISED
from models.table import NO_LABEL, CustomerTable, Rows

_CUTS: Final = 4


class Rfm:
    """Customers by the group of their three scores."""

    reads: Final = frozenset(("purchases", "refunds"))

    def __init__(self, name: str, policy: RfmPolicy, cutoffs: Mapping[str, tuple[int, ...]]) -> None:
        self.name: Final = name
        self.labels: Final = policy.labels
        cuts = [np.array(cutoffs.get(of, ()), dtype=np.int64) for of in SUMMARISED]
        self._known = all(len(each) == _CUTS for each in cuts)
        self._recency, self._orders, self._monetary = cuts
        #: How long after the last purchase each recency score ends; the worst does not.
        self._ends = np.append(self._recency, FOREVER)
        groups = {code: group for group, codes in enumerate(policy.groups.values()) for code in codes}
        #: The label codes of 111, 112 … 555.
        self._group = np.array([groups[code] for code in sorted(groups)], dtype=np.int16)

    def _passed(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int64]:
        """How many recency cut-offs lie below the time since the last purchase; without one, below 0."""
        last = table.last_purchase_at[rows]
        age = at - np.where(last == NEVER, at, last)
        passed: NDArray[np.int64] = self._recency.searchsorted(age)
        return passed

    def _scores(self, table: CustomerTable, rows: Rows, at: Instants) -> tuple[NDArray[np.int64], ...]:
        """The three scores less one, of rows that bought."""
        return (
            4 - self._passed(table, rows, at),
            self._orders.searchsorted(table.orders[rows]),
            self._monetary.searchsorted(table.net(rows)),
        )

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row at its instant ``at``."""
        if not self._known:
            return np.full(len(rows), NO_LABEL, dtype=np.int16)
        r, f, m = self._scores(table, rows, at)
        return np.where(table.orders[rows] > 0, self._group[25 * r + 5 * f + m], np.int16(NO_LABEL))

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """When each row loses its recency score if nothing happens, not before ``at``; else FOREVER."""
        if not self._known:
            return np.full(len(rows), FOREVER, dtype=np.int64)
        passed, last = self._passed(table, rows, at), table.last_purchase_at[rows]
        return np.where((last != NEVER) & (passed < _CUTS), last + self._ends[passed], FOREVER)

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """The three scores."""
        if not table.orders[row]:
            return "no purchase"
        if not self._known:
            return "no cut-offs yet"
        rows, instants = np.array([row], dtype=np.int64), np.array([at], dtype=np.int64)
        r, f, m = (int(score[0]) + 1 for score in self._scores(table, rows, instants))
        return f"R{r} F{f} M{m}"
