"""The attribute engine: the segment is the group of the customer's latest value of an attribute.

A text of no group is ``other``, if the policy has that, else no segment. Time alone moves nobody.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.engines import AttributePolicy
from models.instants import FOREVER, Instants
from models.measures import by_group
from models.table import CustomerTable, Rows


class Attribute:
    """Customers by the group of a text that is kept with them."""

    def __init__(self, name: str, policy: AttributePolicy) -> None:
        self.name: Final = name
        self.labels: Final = policy.labels
        self.reads: Final = frozenset((policy.of,))
        self._policy = policy
        self._group = by_group(policy)

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row; ``at`` does not matter."""
        of = self._policy.of
        labels: NDArray[np.int16] = self._group(table.values[of])[table.value[table.attributes.index(of)][rows]]
        return labels

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """FOREVER: time alone moves nobody."""
        return np.full(len(rows), FOREVER, dtype=np.int64)

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """The attribute and its value."""
        of = self._policy.of
        text = table.values[of].text(int(table.value[table.attributes.index(of)][row]))
        return f"no {of}" if text is None else f"{of} {text}"
