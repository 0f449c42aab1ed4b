"""CustomerTable: one shard's customers as columns, one row a customer, with an index from customer_id to row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.instants import FOREVER, NEVER
from models.policy import Policy

Rows = NDArray[np.int64]

#: The label code of a customer who has no segment in a dimension.
NO_LABEL: Final = -1
#: The attribute code of a value that was never seen.
NO_VALUE: Final = -1
OTHER: Final = "(other)"
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
    columns are longer than the number of customers. ``score`` is the sum of survey scores in hundredths, a ``number``
    that was never seen is NaN.

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
        self.index: dict[str, int] = {}
        self.customer: list[str] = []
        self._free: list[int] = []
        #: No deadline of any row is earlier than this instant: most batches need not look.
        self.earliest_deadline = FOREVER
        self._forget_due()
        size, dims, attrs, numbers = 0, len(self.dimensions), len(self.attributes), len(self.numbers)
        #: XXH3-64 of each row's customer_id, by which customers are drawn (models/sampling.py).
        self.identity = np.zeros(size, dtype=np.uint64)
        self.signed_up_at = np.full(size, FOREVER, dtype=np.int64)
        self.first_purchase_at = np.full(size, FOREVER, dtype=np.int64)
        self.last_purchase_at = np.full(size, NEVER, dtype=np.int64)
        self.orders = np.zeros(size, dtype=np.int64)
        self.refunds = np.zeros(size, dtype=np.int64)
        self.gross = np.zeros(size, dtype=np.int64)
        self.refunded = np.zeros(size, dtype=np.int64)
        self.surveys = np.zeros(size, dtype=np.int64)
        self.score = np.zeros(size, dtype=np.int64)
        #: The number of the activation under which the row was last labelled.
        self.activation = np.zeros(size, dtype=np.int64)
        self.sequence = np.zeros(size, dtype=np.int64)
        self.label = np.full((size, dims), NO_LABEL, dtype=np.int16)
        self.changed_at = np.full((size, dims), NEVER, dtype=np.int64)
        self.deadline = np.full((size, len(moving) + 1), FOREVER, dtype=np.int64)
        self.soonest = np.full(size, FOREVER, dtype=np.int64)
        self.value = np.full((size, attrs), NO_VALUE, dtype=np.int32)
        self.value_at = np.full((size, attrs), NEVER, dtype=np.int64)
        self.number = np.full((size, numbers), np.nan, dtype=np.float64)
        self.number_at = np.full((size, numbers), NEVER, dtype=np.int64)
        #: For each tally, the weight of each of its dictionary's texts; columns are added as texts are met.
        self.tally = {tally.name: np.zeros((size, 1), dtype=np.float64) for tally in self.tallies}
        self.seen = np.zeros((size, policy.events.remembered_ids), dtype=np.uint64)
        self.seen_count = np.zeros(size, dtype=np.int64)
        self._blank = {
            name: column.dtype.type(fill)
            for name, fill in {
                "signed_up_at": FOREVER, "first_purchase_at": FOREVER, "last_purchase_at": NEVER, "orders": 0,
                "refunds": 0, "gross": 0, "refunded": 0, "surveys": 0, "score": 0, "activation": 0, "sequence": 0,
                "label": NO_LABEL, "changed_at": NEVER, "deadline": FOREVER, "soonest": FOREVER, "value": NO_VALUE,
                "value_at": NEVER, "number": np.nan, "number_at": NEVER, "seen": 0, "seen_count": 0,
            }.items()
            for column in [getattr(self, name)]
        }  # fmt: skip
        self._not_zero = [name for name, blank in self._blank.items() if blank != 0]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def rows(self) -> Rows:
        """The rows in use, in the order in which their customers arrived."""
        return np.fromiter(self.index.values(), dtype=np.int64, count=len(self.index))

    def place(self, customers: Sequence[str]) -> Rows:
        """The row of each customer; unknown customers get blank rows."""
        rows = np.fromiter(map(self.index.get, customers, repeat(-1)), dtype=np.int64, count=len(customers))
        unknown = (rows < 0).nonzero()[0]
        if len(unknown):
            named = customers if len(unknown) == len(customers) else [customers[i] for i in unknown.tolist()]
            new = list(dict.fromkeys(named))
            added = self.add(new)
            rows[unknown] = added if len(new) == len(named) else list(map(self.index.__getitem__, named))
        return rows

    def reserve(self, customers: int) -> None:
        """Make room for so many customers at once, and a few more, instead of growing with them."""
        if customers > len(self.orders):
            self._grow(customers + customers // 64)

    def add(self, customers: Sequence[str]) -> Rows:
        """Blank rows for different customers who have none yet: rows that were freed first."""
        freed = [self._free.pop() for _ in range(min(len(self._free), len(customers)))]
        for row, customer in zip(freed, customers, strict=False):
            self.customer[row] = customer
        first = len(self.customer)
        self.customer.extend(customers[len(freed) :])
        if len(self.customer) > len(self.orders):
            self._grow(max(1024, len(self.customer) + len(self.customer) // 4))
        # Not sooner, and no zeros: memory costs most when it is written for the first time.
        for name in self._not_zero:
            getattr(self, name)[first : len(self.customer)] = self._blank[name]
        numbers = [*freed, *range(first, len(self.customer))]
        self.index.update(zip(customers, numbers, strict=True))
        rows = np.array(numbers, dtype=np.int64)
        digests = map(xxhash.xxh3_64_intdigest, map(str.encode, customers))
        self.identity[rows] = np.fromiter(digests, dtype=np.uint64, count=len(customers))
        return rows

    def _grow(self, size: int) -> None:
        for name in ("identity", *self._blank):
            setattr(self, name, _grown(getattr(self, name), size))
        for name, weights in self.tally.items():
            self.tally[name] = _grown(weights, size)

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
        return labels.index(text)

    def clear(self, rows: Rows) -> None:
        """Forget everything about the rows' customers; the rows stay theirs until they are freed."""
        for name, blank in self._blank.items():
            getattr(self, name)[rows] = blank
        for weights in self.tally.values():
            weights[rows] = 0

    def is_blank(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether nothing is known about the rows' customers."""
        nothing: NDArray[np.bool_] = self.seen_count[rows] == 0
        return nothing

    def free(self, rows: Rows) -> None:
        """Give blank rows back, to be used for other customers."""
        for row in rows.tolist():
            del self.index[self.customer[row]]
            self.customer[row] = ""
            self._free.append(row)

    def net(self, rows: Rows) -> NDArray[np.int64]:
        """Monetary: purchases less refunds, in minor units."""
        return self.gross[rows] - self.refunded[rows]

    def note_deadlines(self, rows: Rows) -> None:
        """Note that deadlines of ``rows`` have been set."""
        soonest = self.deadline[rows].min(axis=1, initial=FOREVER)
        self.soonest[rows] = soonest
        earliest = int(soonest.min(initial=FOREVER))
        self.earliest_deadline = min(self.earliest_deadline, earliest)
        if earliest < self._others_due:
            self._forget_due()

    def due(self, instant: int) -> Rows:
        """Rows with a deadline before ``instant``."""
        if self.earliest_deadline >= instant:
            return np.empty(0, dtype=np.int64)
        soonest = self.soonest[: len(self.customer)]
        rows = (soonest < instant).nonzero()[0]
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


def _grown(column: NDArray[Any], size: int) -> NDArray[Any]:
    """The column with room for so many rows, zero beyond those that it has, which takes no memory yet."""
    grown = np.zeros((size, *column.shape[1:]), dtype=column.dtype)
    grown[: len(column)] = column
    return grown
