"""Segmenter: a batch or an instant into changes. Deadlines, fold, label, compare.

For each record, at the shard's time at that record: the row's due deadlines in time order, the fold, the labels.
Records are taken in rounds, in each of which a customer occurs once, so that all of this is vector operations.
The deadlines of rows that no record touched are applied last; they are dated by the first record that passed them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.batch import EventBatch, Refusal, rounds
from models.changes import Cause, SegmentChanged, change_id
from models.dimensions import dimensions_of
from models.events import ROLES, Kind
from models.fold import fold
from models.instants import DAY, FOREVER, NEVER, Instants, format_column
from models.policy import Policy
from models.table import NO_LABEL, CustomerTable, Rows

CAUSES: Final[tuple[Cause, ...]] = ("time", "purchase", "refund", "signup", "erasure", "late_event")
TIME, LATE = CAUSES.index("time"), CAUSES.index("late_event")
_CAUSE_OF_KIND: Final = np.array([TIME, *range(1, 5)], dtype=np.int8)
#: An event position that stands for "no event": time did it.
NO_EVENT: Final = -1


class Changes(NamedTuple):
    """Changes as columns. ``decided`` is the position of the deciding record, ``event`` of the causing one."""

    row: Rows
    dimension: NDArray[np.int64]
    before: NDArray[np.int16]
    after: NDArray[np.int16]
    cause: NDArray[np.int8]
    effective_at: Instants
    decided: NDArray[np.int64]
    event: NDArray[np.int64]
    sequence: NDArray[np.int64]
    orders: NDArray[np.int64]
    net: NDArray[np.int64]
    last_purchase_at: Instants
    segments: NDArray[np.int16]


@dataclass(slots=True)
class Outcome:
    """What one batch or instant did to a table.

    ``changes`` and ``published`` are the same rows in the same order: as columns and as wire forms. ``touched`` are
    all rows that may differ, ``dirty`` those of them to store, ``erased`` the customers to remove, ``time`` is the
    shard's time after it.
    """

    time: int
    changes: Changes
    published: list[SegmentChanged]
    touched: Rows
    dirty: Rows
    erased: list[str]
    overflowed: list[Refusal] = field(default_factory=list)


class _Work(NamedTuple):
    """One pass over a batch: the shard's time at each record, what has been found so far, and what is history."""

    times: Instants
    found: list[Changes]
    touched: list[Rows]
    told_until: int


class Segmenter:
    """The policy applied to customer tables. Stateless: everything it remembers is in the table."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.dimensions = dimensions_of(policy)

    def apply(
        self,
        table: CustomerTable,
        batch: EventBatch,
        times: Instants,
        backfill: NDArray[np.bool_],
        told_until: int = NEVER,
    ) -> Outcome:
        """Fold a batch into the table.

        ``times`` is the shard's time at each record, never decreasing; ``backfill`` whether it is history. So is
        every deadline before ``told_until``.
        """
        work = _Work(times, [], [], told_until)
        refused: list[int] = []
        events = np.flatnonzero(batch.kind != Kind.TICK)
        rows = table.place([batch.customer[i] for i in events.tolist()])
        for part in rounds(rows):
            refused += self._round(table, batch, events[part], rows[part], work)
        if len(times):
            self._pass_due(table, int(times[-1]), None, work)
        overflowed = [_overflow(batch, position) for position in sorted(refused)]
        return self._outcome(table, batch, int(times[-1]) if len(times) else NEVER, work, backfill, overflowed, rows)

    def advance(
        self, table: CustomerTable, instant: int, backfill: bool, most: int | None = None, told_until: int = NEVER
    ) -> Outcome:
        """Let the shard's time reach ``instant``: apply every deadline before it, of at most ``most`` rows.

        Those rows are the ones with the earliest deadlines.
        """
        work = _Work(np.array([instant], dtype=np.int64), [], [], told_until)
        self._pass_due(table, instant, most, work)
        nothing = np.empty(0, dtype=np.int64)
        return self._outcome(table, None, instant, work, np.array([backfill]), [], nothing)

    def _round(
        self, table: CustomerTable, batch: EventBatch, positions: NDArray[np.int64], rows: Rows, work: _Work
    ) -> list[int]:
        """One event for each of ``rows``. Returns the positions that would overflow a total."""
        times = work.times[positions]
        self._pass_deadlines(table, rows, times, work)
        erasing = batch.kind[positions] == Kind.ERASURE
        if erasing.any():
            self._erase(table, batch, positions[erasing], rows[erasing], work)
            positions, rows = positions[~erasing], rows[~erasing]
        folded = fold(table, batch, positions, rows)
        refused: list[int] = positions[folded.overflowed].tolist()
        if not folded.counted.all():
            positions, rows = positions[folded.counted], rows[folded.counted]
        times = work.times[positions]
        for d, dimension in enumerate(self.dimensions):
            after = dimension.label(table, rows, times)
            moved = np.flatnonzero(after != table.label[rows, d])
            if len(moved):
                p, r, t, label = positions[moved], rows[moved], times[moved], after[moved]
                occurred, previous = batch.occurred_at[p], table.changed_at[r, d]
                # Late: an earlier change is overtaken, or time has already overtaken what the event did.
                late = (occurred < previous) | (dimension.label(table, r, occurred) != label)
                cause = np.where(late, LATE, _CAUSE_OF_KIND[batch.kind[p]]).astype(np.int8)
                effective = np.where(late, np.maximum(t, previous), occurred)
                self._move(table, r, d, label, cause, effective, effective, p, p, work)
            table.set_deadline(rows, d, dimension.deadline(table, rows, times))
        return refused

    def _pass_due(self, table: CustomerTable, instant: int, most: int | None, work: _Work) -> None:
        """Apply the deadlines before ``instant`` of the whole table, or of at most ``most`` rows of it."""
        rows = table.due(instant)
        if most is not None and len(rows) > most:
            soonest = table.deadline[rows].min(axis=1)
            order = np.argpartition(soonest, most)
            # No further than to the earliest deadline left, which is the shard's time for whoever loads it next.
            rows, instant = rows[order[:most]], int(soonest[order[most]]) + 1
        self._pass_deadlines(table, rows, np.full(len(rows), instant, dtype=np.int64), work)

    def _pass_deadlines(self, table: CustomerTable, rows: Rows, before: Instants, work: _Work) -> None:
        """Apply the deadlines of ``rows`` that lie before their instant ``before``, in time order, until none does."""
        if table.earliest_deadline >= before.max(initial=NEVER):
            return
        while len(rows):
            nearest = table.deadline[rows].argmin(axis=1)
            deadline = table.deadline[rows, nearest]
            due = deadline < before
            if not due.all():
                rows, before, nearest, deadline = rows[due], before[due], nearest[due], deadline[due]
            if not len(rows):
                return
            work.touched.append(rows)
            decided = np.searchsorted(work.times, deadline, side="right")
            for d, dimension in enumerate(self.dimensions):
                here = np.flatnonzero(nearest == d)
                r, at = rows[here], deadline[here]
                after = dimension.label(table, r, at + 1)
                moved = np.flatnonzero(after != table.label[r, d])
                m, since = r[moved], at[moved]
                cause = np.full(len(m), TIME, dtype=np.int8)
                none = np.full(len(m), NO_EVENT, dtype=np.int64)
                self._move(table, m, d, after[moved], cause, since, since + 1, decided[here][moved], none, work)
                table.set_deadline(r, d, dimension.deadline(table, r, at + 1))

    def _erase(
        self, table: CustomerTable, batch: EventBatch, positions: NDArray[np.int64], rows: Rows, work: _Work
    ) -> None:
        """Forget the rows' customers, publishing a change to no segment in each dimension that had one."""
        before = table.label[rows].copy()
        changed_at, sequence = table.changed_at[rows].copy(), table.sequence[rows].copy()
        table.clear(rows)
        table.sequence[rows] = sequence
        for d in range(len(self.dimensions)):
            had = np.flatnonzero(before[:, d] != NO_LABEL)
            r, p = rows[had], positions[had]
            table.label[r, d] = before[had, d]
            effective = np.maximum(batch.occurred_at[p], changed_at[had, d])
            cause = _CAUSE_OF_KIND[batch.kind[p]]
            after = np.full(len(r), NO_LABEL, dtype=np.int16)
            self._move(table, r, d, after, cause, effective, effective, p, p, work)
        table.clear(rows)

    def _move(
        self,
        table: CustomerTable,
        rows: Rows,
        dimension: int,
        after: NDArray[np.int16],
        cause: NDArray[np.int8],
        effective_at: Instants,
        holds_from: Instants,
        decided: NDArray[np.int64],
        event: NDArray[np.int64],
        work: _Work,
    ) -> None:
        """Give the rows their new label and note the change, with the measures as they stand."""
        before = table.label[rows, dimension]
        table.label[rows, dimension] = after
        table.changed_at[rows, dimension] = holds_from
        table.sequence[rows] += 1
        work.found.append(
            Changes(
                rows,
                np.full(len(rows), dimension, dtype=np.int64),
                before,
                after,
                cause,
                effective_at,
                decided,
                event,
                table.sequence[rows],
                table.orders[rows],
                table.net(rows),
                table.last_purchase_at[rows],
                table.label[rows],
            )
        )

    def _outcome(
        self,
        table: CustomerTable,
        batch: EventBatch | None,
        time: int,
        work: _Work,
        backfill: NDArray[np.bool_],
        overflowed: list[Refusal],
        rows: Rows,
    ) -> Outcome:
        touched = np.unique(np.concatenate([rows, *work.touched]))
        changes = _in_order(work.found, table, len(self.dimensions))
        published = self._wire(table, batch, changes, work, backfill)
        blank = table.is_blank(touched)
        gone = touched[blank]
        erased = [table.customer[row] for row in gone.tolist()]
        table.free(gone)
        return Outcome(time, changes, published, touched, touched[~blank], erased, overflowed)

    def _wire(
        self,
        table: CustomerTable,
        batch: EventBatch | None,
        changes: Changes,
        work: _Work,
        backfill: NDArray[np.bool_],
    ) -> list[SegmentChanged]:
        """The changes as they are published, in the same order."""
        policy, money = self.policy, self.policy.converter
        names = [dimension.name for dimension in self.dimensions]
        labels: list[tuple[str | None, ...]] = [(*dimension.labels, None) for dimension in self.dimensions]
        told = (changes.event == NO_EVENT) & (changes.effective_at < work.told_until)
        known = changes.orders > 0
        recency = np.maximum((changes.effective_at - np.where(known, changes.last_purchase_at, 0)) // DAY, 0)
        rows = zip(
            [table.customer[row] for row in changes.row.tolist()],
            changes.dimension.tolist(),
            changes.before.tolist(),
            changes.after.tolist(),
            changes.cause.tolist(),
            changes.effective_at.tolist(),
            format_column(changes.effective_at),
            format_column(work.times[changes.decided]),
            (backfill[changes.decided] | told).tolist(),
            changes.event.tolist(),
            changes.sequence.tolist(),
            changes.orders.tolist(),
            changes.net.tolist(),
            recency.tolist(),
            changes.segments.tolist(),
            strict=True,
        )
        published: list[SegmentChanged] = []
        for (customer, d, old, new, cause, instant, effective, decided, history, position, sequence, orders, net,
             days, segments) in rows:  # fmt: skip
            event_id = batch.event_id[position] if batch is not None and position != NO_EVENT else None
            source = f"deadline:{instant}" if event_id is None else f"event:{event_id}"
            before, after = labels[d][old], labels[d][new]
            published.append(
                {
                    "change_id": change_id(customer, names[d], before, after, source),
                    "customer_id": customer,
                    "sequence": sequence,
                    "dimension": names[d],
                    "from": before,
                    "to": after,
                    "cause": CAUSES[cause],
                    "event_id": event_id,
                    "effective_at": effective,
                    "decided_at": decided,
                    "policy_version": policy.version,
                    "backfill": history,
                    "rfm": {
                        "recency_days": days if orders else None,
                        "frequency": orders,
                        "monetary": money.text(net),
                        "currency": money.base,
                    },
                    "segments": {name: texts[code] for name, texts, code in zip(names, labels, segments, strict=True)},
                }
            )
        return published


def _overflow(batch: EventBatch, position: int) -> Refusal:
    return Refusal(
        ROLES[batch.rank[position]],
        batch.record[position],
        "total_too_large",
        "the customer's total would be larger than this system can count; check the amounts of this customer_id",
    )


def _in_order(found: list[Changes], table: CustomerTable, dimensions: int) -> Changes:
    """All changes by deciding record, lapse before event, deadline, customer_id, dimension."""
    if not found:
        none = np.empty(0, dtype=np.int64)
        return Changes(
            none, none, none.astype(np.int16), none.astype(np.int16), none.astype(np.int8), none, none, none, none,
            none, none, none, np.empty((0, dimensions), dtype=np.int16),
        )  # fmt: skip
    columns: list[Any] = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    every = Changes(*columns)
    by_event = every.event != NO_EVENT
    deadline = np.where(by_event, FOREVER, every.effective_at)
    _, customer = np.unique(np.array([table.customer[row] for row in every.row.tolist()]), return_inverse=True)
    order = np.lexsort((every.dimension, customer, deadline, by_event, every.decided))
    ordered: list[Any] = [column[order] for column in every]
    return Changes(*ordered)
