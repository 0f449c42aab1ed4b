"""A round into the table: RFM totals, dedupe, attributes. Order does not matter to any of it.

First is a minimum, last a maximum, counts and sums add, an attribute keeps the value with the latest
``occurred_at`` (of equal instants the greater text), a remembered event id adds nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.batch import EventBatch
from models.events import Kind
from models.money import LARGEST_TOTAL
from models.table import NO_VALUE, CustomerTable, Rows


class Folded(NamedTuple):
    """What became of a round's events, in its order: counted, or refused because a total would be too large.

    What is neither was a duplicate.
    """

    counted: NDArray[np.bool_]
    overflowed: NDArray[np.bool_]


def fold(table: CustomerTable, batch: EventBatch, positions: NDArray[np.int64], rows: Rows) -> Folded:
    """Add the batch's events at ``positions`` to ``rows``, one event a row, none of them tick or erasure."""
    hashes = batch.event_hash[positions]
    duplicate = (table.seen[rows] == hashes[:, None]).any(axis=1)
    kind, amount = batch.kind[positions], batch.amount[positions]
    bought, refunded = kind == Kind.PURCHASE, kind == Kind.REFUND
    total = np.where(bought, table.gross[rows], table.refunded[rows])
    overflowed = ~duplicate & (bought | refunded) & (total > LARGEST_TOTAL - amount)
    counted = ~duplicate & ~overflowed
    if not counted.all():
        positions, rows, hashes, amount = positions[counted], rows[counted], hashes[counted], amount[counted]
        bought, refunded, kind = bought[counted], refunded[counted], kind[counted]
    place = table.seen_count[rows] % table.seen.shape[1]
    table.seen[rows, place] = hashes
    table.seen_count[rows] += 1

    occurred = batch.occurred_at[positions]
    r, at = rows[bought], occurred[bought]
    table.orders[r] += 1
    table.gross[r] += amount[bought]
    table.first_purchase_at[r] = np.minimum(table.first_purchase_at[r], at)
    table.last_purchase_at[r] = np.maximum(table.last_purchase_at[r], at)
    if refunded.any():
        r = rows[refunded]
        table.refunds[r] += 1
        table.refunded[r] += amount[refunded]
    signed_up = kind == Kind.SIGNUP
    if signed_up.any():
        r = rows[signed_up]
        table.signed_up_at[r] = np.minimum(table.signed_up_at[r], occurred[signed_up])
    for a, name in enumerate(table.attributes):
        _fold_attribute(table, a, batch.attributes[name], positions, rows, occurred)
    return Folded(counted, overflowed)


def _fold_attribute(
    table: CustomerTable,
    attribute: int,
    texts: list[str | None],
    positions: NDArray[np.int64],
    rows: Rows,
    occurred: NDArray[np.int64],
) -> None:
    values = table.values[table.attributes[attribute]]
    at = positions.tolist()
    present = np.array([i for i, position in enumerate(at) if texts[position] is not None], dtype=np.int64)
    if not len(present):
        return
    codes = np.array([values.code(texts[at[i]] or "") for i in present.tolist()], dtype=np.int32)
    r, when = rows[present], occurred[present]
    known_at, known = table.value_at[r, attribute], table.value[r, attribute]
    wins = when > known_at
    for i in np.flatnonzero((when == known_at) & (codes != known)).tolist():
        old = values.text(int(known[i]))
        wins[i] = known[i] == NO_VALUE or (old is not None and values.texts[codes[i]] > old)
    table.value[r[wins], attribute] = codes[wins]
    table.value_at[r[wins], attribute] = when[wins]
