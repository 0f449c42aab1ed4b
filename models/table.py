"""CustomerTable: one shard's customers as columns, one row a customer, with an index from customer_id to row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.columns import Column, Places, RememberedIds, grown
from models.customers import CustomerIndex
from models.instants import FOREVER, NEVER
from models.policy import Policy

Rows = NDArray[np.int64]
#: Label codes, bytes where they fit.
Labels = NDArray[np.signedinteger[Any]]

#: The label code of a customer who has no segment in a dimension.
NO_LABEL: Final = -1
#: The attribute code of a value that was never seen.
NO_VALUE: Final = -1
OTHER: Final = "(other)"
#: Labels of a dimension whose codes fit a byte.
BYTE_OF_LABELS: Final = 128
#: Distinct texts counted apart in one tally of a shard; all further ones count as "(other)".
MOST_TALLIED: Final = 64
#: Rows with the earliest deadlines that are found at once.
_FOUND_AT_ONCE: Final = 8192


class AttributeValues:
    """The dictionary of one attribute: text ↔ code, append-only, with a cap; beyond it every text is "(other)"."""

    def __init__(self, most: int, texts: Iterable[str] = ()) -> None:
        self.texts = list(texts)
        self._codes = {text: code for code, text in enumerate(self.texts)}
        self.most = most

    def code(self, text: str) -> int:
        """The text's code, a new one if there is room."""
        code = self._codes.get(text)
        if code is None:
            if len(self.texts) >= self.most and text != OTHER:
                return self.code(OTHER)
            code = self._codes[text] = len(self.texts)
            self.texts.append(text)
        return code

    def text(self, code: int) -> str | None:
        """The code's text, or None for NO_VALUE."""
        return None if code == NO_VALUE else self.texts[code]


class CustomerTable:
    """Columns of customer state. Instants are int64 microseconds, money is in minor units of the base currency.

    Absent instants are NEVER in columns that keep the latest and FOREVER in columns that keep the earliest. The
    columns are longer than the number of customers; what no customer has takes no memory. ``score`` is the sum of
    survey scores in hundredths, a ``number`` that was never seen is NaN.

    Each dimension that moves in time has a column of ``deadline``. All others share the last one: only another policy
    moves a customer there without an event. ``soonest`` is each row's earliest deadline.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.dimensions = tuple(policy.dimensions)
        moving = policy.moving
        #: For each dimension, the column of its deadlines.
        self.deadline_of = [moving.index(name) if name in moving else len(moving) for name in self.dimensions]
        #: Each dimension's segments by code; beyond those of the policy, retired ones that rows still bear.
        self.labels = [list(dimension.labels) for dimension in policy.dimensions.values()]
        self.attributes = policy.attributes.keep
        self.numbers = policy.attributes.numbers
        self.tallies = policy.tallies
        self.values = {
            **{name: AttributeValues(policy.attributes.max_values) for name in self.attributes},
            **{tally.name: AttributeValues(MOST_TALLIED) for tally in self.tallies},
        }
        #: Which row each customer has, and whose each row is.
        self.index: Final = CustomerIndex()
        #: Rows that are somebody's or have been.
        self._places: Final = Places()
        #: Rows that there is room for.
        self.capacity = 0
        #: No deadline of any row is earlier than this instant: most batches need not look.
        self.earliest_deadline = FOREVER
        self._forget_due()
        self.signed_up_at = Column(FOREVER)
        self.first_purchase_at = Column(FOREVER)
        self.last_purchase_at = Column(NEVER)
        self.orders = Column(0, np.uint32)
        self.refunds = Column(0, np.uint32)
        self.gross = Column(0)
        self.refunded = Column(0)
        self.surveys = Column(0, np.uint32)
        self.score = Column(0)
        #: The number of the activation under which the row was last labelled.
        self.activation = Column(0, np.uint32)
        self.sequence = Column(0, np.uint32)
        self.soonest = Column(FOREVER)
        # A column for each dimension, attribute or number.
        self.changed_at = [Column(NEVER) for _ in self.dimensions]
        self.deadline = [Column(FOREVER) for _ in (*moving, None)]
        self.value = [Column(NO_VALUE, np.int32) for _ in self.attributes]
        self.value_at = [Column(NEVER) for _ in self.attributes]
        self.number = [Column(np.nan, np.float64) for _ in self.numbers]
        self.number_at = [Column(NEVER) for _ in self.numbers]
        self._columns: Final = [
            each
            for columns in vars(self).values()
            for each in (columns if isinstance(columns, list) else [columns])
            if isinstance(each, Column)
        ]
        #: The label code of each row in each dimension.
        most = max(map(len, self.labels), default=0)
        code = np.int8 if most <= BYTE_OF_LABELS else np.int16
        self.label: Labels = np.zeros((0, len(self.dimensions)), dtype=code)
        #: For each tally, the weight of each of its dictionary's texts; columns are added as texts are met.
        self.tally = {tally.name: np.zeros((0, 1), dtype=np.float64) for tally in self.tallies}
        self.seen = RememberedIds(policy.events.remembered_ids)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def rows(self) -> Rows:
        """The rows in use, ascending."""
        return self.index.rows()

    def place(self, customers: list[str]) -> Rows:
        """The row of each customer; unknown customers get blank rows."""
        rows = self.index.find(customers)
        unknown = (rows < 0).nonzero()[0]
        if len(unknown):
            named = customers if len(unknown) == len(customers) else [customers[i] for i in unknown.tolist()]
            new = list(dict.fromkeys(named))
            added = self.add(new)
            rows[unknown] = added if len(new) == len(named) else self.index.find(named)
        return rows

    def reserve(self, customers: int) -> None:
        """Make room for so many customers at once, and a few more, instead of growing with them."""
        if customers > self.capacity:
            self._grow(customers + customers // 64)
            self.index.reserve(self.capacity)

    def add(self, customers: list[str]) -> Rows:
        """Blank rows for different customers who have none yet: rows that were freed first."""
        first = self._places.used
        rows = np.array(self._places.take(len(customers)), dtype=np.int64)
        end = self._places.used
        if end > self.capacity:
            self._grow(max(1024, end + end // 4))
        for column in self._columns:
            column.append(first, end)
        self.label[first:end] = NO_LABEL
        self.index.add(customers, rows)
        return rows

    def _grow(self, size: int) -> None:
        used = min(self._places.used, self.capacity)
        self.seen.resize(used, size)
        for column in self._columns:
            column.resize(used, size)
        self.label = grown(self.label, used, size)
        for name, weights in self.tally.items():
            self.tally[name] = grown(weights, used, size)
        self.capacity = size

    def widen(self, tally: str, width: int) -> None:
        """Make room for at least ``width`` texts of a tally. Widths are powers of two: few layouts, few copies."""
        weights = self.tally[tally]
        if weights.shape[1] < width:
            more = (1 << (width - 1).bit_length()) - weights.shape[1]
            self.tally[tally] = np.pad(weights, ((0, 0), (0, more)))

    def label_code(self, dimension: int, text: str) -> int:
        """The code of a segment that rows bear; one that the policy does not have becomes a retired one."""
        labels = self.labels[dimension]
        if text not in labels:
            labels.append(text)
            if len(labels) > BYTE_OF_LABELS:
                self.label = self.label.astype(np.int16, copy=False)
        return labels.index(text)

    def clear(self, rows: Rows) -> None:
        """Forget everything about the rows' customers; the rows stay theirs until they are freed."""
        self.seen.clear(rows)
        for column in self._columns:
            column.clear(rows)
        self.label[rows] = NO_LABEL
        for weights in self.tally.values():
            weights[rows] = 0

    def is_blank(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether nothing is known about the rows' customers."""
        return ~self.seen.any(rows)

    def free(self, rows: Rows) -> None:
        """Give blank rows back, to be used for other customers."""
        self.index.remove(rows)
        self._places.give_back(rows.tolist())

    def net(self, rows: Rows) -> NDArray[np.int64]:
        """Monetary: purchases less refunds, in minor units."""
        net: NDArray[np.int64] = self.gross[rows] - self.refunded[rows]
        return net

    def note_deadlines(self, rows: Rows) -> None:
        """Note that deadlines of ``rows`` have been set."""
        soonest = np.full(len(rows), FOREVER, dtype=np.int64)
        for deadline in self.deadline:
            if not deadline.untouched:
                np.minimum(soonest, deadline[rows], out=soonest)
        self.soonest[rows] = soonest
        earliest = int(soonest.min(initial=FOREVER))
        self.earliest_deadline = min(self.earliest_deadline, earliest)
        if earliest < self._others_due:
            self._forget_due()

    def due(self, instant: int) -> Rows:
        """Rows with a deadline before ``instant``."""
        if self.earliest_deadline >= instant:
            return np.empty(0, dtype=np.int64)
        soonest = self.soonest[: self._places.used]
        rows: Rows = (soonest < instant).nonzero()[0]
        if not len(rows):
            self.earliest_deadline = int(soonest.min(initial=FOREVER))
        return rows

    def _forget_due(self) -> None:
        #: Rows that are due, by deadline, as of when they were looked for, and their deadlines then.
        self._next_due = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        #: No other row's deadline is earlier than this instant.
        self._others_due = NEVER

    def next_due(self, instant: int, most: int) -> tuple[Rows, int]:
        """At most ``most`` rows with a deadline before ``instant``, the earliest, and the earliest of all others'.

        Of very many that are due, few are looked for at once and remembered: what is taken next is among them.
        """
        if self.earliest_deadline >= instant:
            return np.empty(0, dtype=np.int64), self.earliest_deadline
        rows, at = self._next_due
        there = self.soonest[rows] == at
        rows, at = rows[there], at[there]
        if len(rows) <= most and self._others_due < instant:
            rows = self.due(instant)
            at, self._others_due = self.soonest[rows], instant
            if len(rows) > (found := max(_FOUND_AT_ONCE, 2 * most)):
                first = np.argpartition(at, found)
                self._others_due = int(at[first[found]])
                rows, at = rows[first[:found]], at[first[:found]]
            order = np.argsort(at, kind="stable")
            rows, at = rows[order], at[order]
        self._next_due = rows, at
        before = int(np.searchsorted(at, instant))
        return rows[: min(most, before)], int(at[most]) if most < len(at) else self._others_due

    def settled(self, instant: int) -> int:
        """The instant before which no row has a deadline, at most ``instant``."""
        rows, others = self.next_due(instant, 1)
        return int(self.soonest[rows[0]]) if len(rows) else min(others, instant)
