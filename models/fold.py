"""A round into the table: RFM totals, surveys, dedupe, attributes, tallies. Order does not matter to any of it.

First is a minimum, last a maximum, counts and sums add, an attribute keeps the value with the latest
``occurred_at`` (of equal instants the greater text or number), a remembered event id adds nothing.

What a purchase weighs in a tally doubles with every half-life since a fixed landmark, which ages it against later
ones without a touch: G. Cormode, V. Shkapenyuk, D. Srivastava, B. Xu, "Forward Decay: A Practical Time Decay Model for
Streaming Systems", ICDE 2009. Only whole half-lives count, so weights are whole multiples of powers of two, whose
sums are exact, and so independent of order, while they fit the bits of a double.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.batch import EventBatch, Refusal
from models.events import PROFILE, PURCHASE, REFUND, ROLES, SIGNUP, SURVEY
from models.instants import DAY, Instants
from models.money import LARGEST_TOTAL
from models.policy import Tally
from models.table import NO_VALUE, AttributeValues, CustomerTable, Rows

#: 2020-01-01T00:00Z, from which half-lives are counted.
LANDMARK: Final = 18_262 * DAY
#: Doublings beyond these, 70 years and more from the landmark, count as these: LARGEST_TOTAL at the most of them is
#: still far inside the range of a double.
MOST_DOUBLINGS: Final = 900

_KINDS: Final = {"purchases": (PURCHASE,), "refunds": (REFUND,), "surveys": (SURVEY,)}
_WITH_ATTRIBUTES: Final = (PURCHASE, REFUND, SIGNUP, PROFILE)

#: For each kept text and each tally, the dictionary code of every event of a batch, NO_VALUE where it has none.
Codes = Mapping[str, NDArray[np.int32]]


class Folded(NamedTuple):
    """What became of a round's events, in its order: counted, or refused because a total would be too large.

    What is neither was a duplicate. ``changed`` says what is now otherwise of any row: ``purchases``, ``refunds``,
    ``signups`` and ``surveys`` if one was counted, and the names of attributes of which a value is another one.
    """

    counted: NDArray[np.bool_]
    overflowed: NDArray[np.bool_]
    changed: frozenset[str]


def kinds_of(changed: Iterable[str]) -> NDArray[np.int8]:
    """The kinds of events that may change any of what ``Folded.changed`` names."""
    return np.unique(np.array([kind for name in changed for kind in _KINDS.get(name, _WITH_ATTRIBUTES)], dtype=np.int8))


def codes_of(table: CustomerTable, batch: EventBatch) -> Codes:
    """The codes of all texts of a batch; texts that are new to a dictionary are added to it.

    Tallies count purchases only, so no other event has a code there.
    """
    found: dict[str, NDArray[np.int32]] = {}
    bought = batch.kind == PURCHASE
    for name, texts in batch.attributes.items():
        # As they come: what a nearly full dictionary still takes must not depend on where a batch was cut.
        met = texts.met()
        distinct, place = met.distinct, met.place
        if name in table.attributes:
            found[name] = _codes(table.values[name], distinct)[place]
        for tally in table.tallies:
            if tally.of == name:
                purchases = np.bincount(place[bought], minlength=len(distinct)).tolist()
                counted = [text if times else None for text, times in zip(distinct, purchases, strict=True)]
                codes = _codes(table.values[tally.name], counted)[place]
                table.widen(tally.name, len(table.values[tally.name].texts))
                found[tally.name] = codes if bought.all() else np.where(bought, codes, np.int32(NO_VALUE))
    return found


def _codes(values: AttributeValues, texts: Iterable[str | None]) -> NDArray[np.int32]:
    return np.array([NO_VALUE if text is None else values.code(text) for text in texts], dtype=np.int32)


def fold(table: CustomerTable, batch: EventBatch, positions: NDArray[np.int64], rows: Rows, codes: Codes) -> Folded:
    """Add the batch's events at ``positions`` to ``rows``, one event a row, none of them tick or erasure.

    ``codes`` are those that ``codes_of`` gave for the batch and this table.
    """
    hashes, kind = batch.event_hash[positions], batch.kind[positions]
    duplicate = table.seen.has(rows, hashes)
    overflowed = ~duplicate & _overflows(table, kind, batch.amount[positions], rows)
    counted = ~(duplicate | overflowed)
    if not counted.all():
        positions, rows, hashes, kind = positions[counted], rows[counted], hashes[counted], kind[counted]
    table.seen.add(rows, hashes)

    changed = set()
    kinds = np.bincount(kind).nonzero()[0].tolist()
    for each in kinds:
        here = slice(None) if len(kinds) == 1 else kind == each
        changed |= _fold_kind(table, batch, each, positions[here], rows[here], codes)
    occurred = batch.occurred_at[positions]
    for column, name in enumerate(table.attributes):
        if _fold_text(table, column, codes[name][positions], rows, occurred):
            changed.add(name)
    for column, name in enumerate(table.numbers):
        if _fold_number(table, column, batch.numbers[name][positions], rows, occurred):
            changed.add(name)
    return Folded(counted, overflowed, frozenset(changed))


def _overflows(
    table: CustomerTable, kind: NDArray[np.int8], amount: NDArray[np.int64], rows: Rows
) -> NDArray[np.bool_]:
    """Whether an event would make its customer's total larger than can be counted."""
    total = np.where(kind == REFUND, table.refunded[rows], table.gross[rows])
    # What is neither purchase nor refund has no amount, and no total is beyond the largest.
    beyond: NDArray[np.bool_] = total > LARGEST_TOTAL - amount
    return beyond


def _fold_kind(
    table: CustomerTable, batch: EventBatch, kind: int, positions: NDArray[np.int64], rows: Rows, codes: Codes
) -> set[str]:
    """Add events of one kind. Returns what that changed."""
    if kind == PURCHASE:
        occurred, amount = batch.occurred_at[positions], batch.amount[positions]
        table.orders[rows] += 1
        table.gross[rows] += amount
        table.first_purchase_at[rows] = np.minimum(table.first_purchase_at[rows], occurred)
        table.last_purchase_at[rows] = np.maximum(table.last_purchase_at[rows], occurred)
        for tally in table.tallies:
            _fold_tally(table, tally, codes[tally.name][positions], amount, rows, occurred)
        return {"purchases"}
    if kind == REFUND:
        table.refunds[rows] += 1
        table.refunded[rows] += batch.amount[positions]
        return {"refunds"}
    if kind == SIGNUP:
        table.signed_up_at[rows] = np.minimum(table.signed_up_at[rows], batch.occurred_at[positions])
        return {"signups"}
    if kind == SURVEY:
        table.surveys[rows] += 1
        table.score[rows] += batch.score[positions]
        return {"surveys"}
    # A profile has nothing but attributes.
    return set()


def _fold_tally(
    table: CustomerTable,
    tally: Tally,
    codes: NDArray[np.int32],
    amount: NDArray[np.int64],
    rows: Rows,
    occurred: Instants,
) -> None:
    """Add the purchases' weights to their texts'. A purchase without the text counts nowhere."""
    known = codes != NO_VALUE
    if not known.all():
        codes, amount, rows, occurred = codes[known], amount[known], rows[known], occurred[known]
    weight = amount.astype(np.float64) if tally.by == "revenue" else np.ones(len(rows))
    if tally.half_life is not None:
        doublings = (occurred - LANDMARK) // tally.half_life
        weight = np.ldexp(weight, np.clip(doublings, -MOST_DOUBLINGS, MOST_DOUBLINGS))
    table.tally[tally.name][rows, codes] += weight


def _fold_text(table: CustomerTable, column: int, codes: NDArray[np.int32], rows: Rows, occurred: Instants) -> bool:
    """Let rows keep the later text, of equal instants the greater. Returns whether any has another one now."""
    present = codes != NO_VALUE
    if not present.all():
        codes, rows, occurred = codes[present], rows[present], occurred[present]
    value, value_at = table.value[column], table.value_at[column]
    known, known_at = value[rows], value_at[rows]
    other = codes != known
    later = occurred > known_at
    for i in (other & (occurred == known_at)).nonzero()[0].tolist():
        texts = table.values[table.attributes[column]].texts
        later[i] = texts[codes[i]] > texts[known[i]]
    if later.all():
        value[rows], value_at[rows] = codes, occurred
        return bool(other.any())
    value[rows], value_at[rows] = np.where(later, codes, known), np.maximum(known_at, occurred)
    return bool((other & later).any())


def _fold_number(
    table: CustomerTable, column: int, numbers: NDArray[np.float64], rows: Rows, occurred: Instants
) -> bool:
    """Let rows keep the later number, of equal instants the greater. Returns whether any has another one now."""
    present = (~np.isnan(numbers)).nonzero()[0]
    if not len(present):
        return False
    numbers, rows, occurred = numbers[present], rows[present], occurred[present]
    number, number_at = table.number[column], table.number_at[column]
    known, known_at = number[rows], number_at[rows]
    later = (occurred > known_at) | ((occurred == known_at) & (numbers > known))
    number[rows], number_at[rows] = np.where(later, numbers, known), np.maximum(known_at, occurred)
    return bool((later & (numbers != known)).any())


def overflow(batch: EventBatch, position: int) -> Refusal:
    """Why the event at ``position`` cannot be counted."""
    return Refusal(
        ROLES[batch.rank[position]],
        batch.record[position],
        "total_too_large",
        "the customer's total would be larger than this system can count; check the amounts of this customer_id",
    )
