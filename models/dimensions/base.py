"""Dimension: one way to segment. A label is a function of a row, a policy and an instant, nothing else."""

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

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row at its instant ``at``."""
        ...

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """The first instant, not before ``at``, after which each row's label differs though nothing happens.

        The label holds at the deadline and changes after it. FOREVER if time alone never changes it.
        """
        ...
