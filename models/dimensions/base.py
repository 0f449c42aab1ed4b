"""Dimension: one way to segment. A label is a function of a row, policy, cut-offs and an instant, nothing else."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.instants import Instants
from models.table import CustomerTable, Rows


class Dimension(Protocol):
    """Labels rows of a customer table, and says when time alone would label them otherwise."""

    @property
    def name(self) -> str:
        """The dimension's name in the policy and in changes."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The segments' names; a label code is an index into them, NO_LABEL is none."""
        ...

    @property
    def reads(self) -> frozenset[str]:
        """What a label is made of: what fold() may report as changed, and names of other dimensions.

        An event that changes none of it does not move the label.
        """
        ...

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row at its instant ``at``."""
        ...

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """The first instant, not before ``at``, after which each row's label may differ though nothing happens.

        The label holds at the deadline and changes, if it does, after it. FOREVER if time alone never changes it.
        """
        ...

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """Why the row has its label at ``at``, in a few plain words: ``3 orders, 12 days since the last``."""
        ...
