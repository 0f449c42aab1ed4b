"""The bands engine: the segment is the last band whose lower bound a measure or numeric attribute reaches.

Without a value, or with one below the first band, a customer has no segment. A measure that time moves (recency,
tenure, orders a month, age) moves its customers at the instant at which it crosses the next bound.
"""

from __future__ import annotations

from decimal import Decimal
from math import isnan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.engines import BandsPolicy
from models.instants import Instants
from models.measures import measure
from models.policy import Policy
from models.table import NO_LABEL, CustomerTable, Rows


class Bands:
    """Customers by the band of a number; band i is the policy's label i."""

    def __init__(self, name: str, policy: BandsPolicy, whole: Policy) -> None:
        self.name: Final = name
        self.labels: Final = policy.labels
        self._bounds = tuple(policy.bands.values())
        self._measure = measure(policy.of, whole)
        self._scale = self._measure.against(self._bounds)
        self.reads: Final = self._measure.reads

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row at its instant ``at``: one less than the bounds reached."""
        reached = self._scale.reached(table, rows, at)
        labels: NDArray[np.int16] = reached.sum(axis=0, dtype=np.int16) + np.int16(NO_LABEL)
        return labels

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """When time takes each row's value over its next bound, not before ``at``; else FOREVER."""
        return self._scale.next_turn(table, rows, at)

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """The value and its band."""
        rows, instants = np.array([row], dtype=np.int64), np.array([at], dtype=np.int64)
        name, value = self._measure.name, float(self._measure.value(table, rows, instants)[0])
        if isnan(value):
            return f"no {name}"
        band = int(self.label(table, rows, instants)[0])
        return f"{name} {self._measure.text(value)} is {_place(self._bounds, band)}"


def _place(bounds: tuple[Decimal, ...], band: int) -> str:
    if band == NO_LABEL:
        return f"below {bounds[0]:f}"
    if band + 1 == len(bounds):
        return f"at least {bounds[band]:f}"
    return f"in [{bounds[band]:f}, {bounds[band + 1]:f})"
