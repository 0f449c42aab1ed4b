"""The dominant engine: the segment is the group of a text of purchases with the most orders or revenue, or mixed.

    weight of the groups                                                   label
    the leading one ahead of the next by margin percent of the whole       the leading one
    by less, or not at all                                                 mixed
    none has any                                                           no label

Texts of no group are ``other``, if the policy has that, else they count nowhere, not in the whole either. The weights
are those of the table's tallies, with their decay. Time alone moves nobody, for it fades all weights alike.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from models.engines import DominantPolicy
from models.instants import FOREVER, Instants
from models.measures import by_group
from models.policy import Tally
from models.table import NO_LABEL, AttributeValues, CustomerTable, Rows


class _Columns(NamedTuple):
    """The tally's columns of texts that count, group after group: where each group starts, and its label code."""

    texts: int
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    groups: NDArray[np.int16]


class Dominant:
    """Customers by what they buy most, or where."""

    reads: Final = frozenset(("purchases",))

    def __init__(self, name: str, policy: DominantPolicy) -> None:
        self.name: Final = name
        self.labels: Final = policy.labels
        self._policy = policy
        self._tally = Tally(policy.of, policy.by, policy.half_life).name
        self._mixed = policy.labels.index(policy.mixed)
        # Fractions of whole numbers, so that a lead of exactly the margin suffices.
        margin = Fraction(policy.margin) / 100
        self._lead, self._whole = float(margin.denominator), float(margin.numerator)
        self._group = by_group(policy)
        self._columns: WeakKeyDictionary[AttributeValues, _Columns] = WeakKeyDictionary()

    def _counting(self, values: AttributeValues) -> _Columns:
        columns = self._columns.get(values)
        if columns is None or columns.texts != len(values.texts):
            group = self._group(values)[:-1]
            order = np.argsort(group, kind="stable")
            order = order[group[order] != NO_LABEL]
            groups, starts = np.unique(group[order], return_index=True)
            columns = self._columns[values] = _Columns(len(values.texts), order, starts, groups)
        return columns

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row; ``at`` does not matter."""
        _, order, starts, groups = self._counting(table.values[self._tally])
        if not len(order):
            return np.full(len(rows), NO_LABEL, dtype=np.int16)
        weights = np.add.reduceat(table.tally[self._tally].take(rows, axis=0).T[order], starts, axis=0)
        whole, leader = weights.sum(axis=0), weights.argmax(axis=0)
        every = np.arange(len(rows))
        first = weights[leader, every]
        weights[leader, every] = 0
        ahead = first - weights.max(axis=0)
        leads = (ahead > 0) & (ahead * self._lead >= whole * self._whole)
        return np.where(leads, groups[leader], np.where(whole > 0, self._mixed, NO_LABEL)).astype(np.int16)

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """FOREVER: time alone moves nobody."""
        return np.full(len(rows), FOREVER, dtype=np.int64)

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """How much of the whole the two leading groups have."""
        _, order, starts, groups = self._counting(table.values[self._tally])
        weights = np.add.reduceat(table.tally[self._tally][row][order], starts) if len(order) else np.zeros(0)
        whole = float(weights.sum())
        if not whole:
            return f"no {self._policy.of} of purchases counts"
        leading = [place for place in np.argsort(-weights, kind="stable")[:2].tolist() if weights[place]]
        parts = [f"{self._part(weights[place], whole)} {self.labels[groups[place]]}" for place in leading]
        return ", ".join(parts)

    def _part(self, weight: float, whole: float) -> str:
        if self._policy.by == "orders" and self._policy.half_life is None:
            return f"{weight:.0f} of {whole:.0f} orders are"
        faded = "" if self._policy.half_life is None else " recent"
        return f"{100 * (weight / whole):.0f} % of{faded} {self._policy.by} is"
