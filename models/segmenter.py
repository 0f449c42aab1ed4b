"""Segmenter: a batch or an instant into changes. Deadlines, fold, label, compare.

For each record, at the shard's time at that record: the row's due deadlines in time order, the fold, the labels.
Records are taken in rounds, in each of which a customer occurs once, so that all of this is vector operations.
The deadlines of rows that no record touched are applied last; they are dated by the first record that passed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.activation import Activation
from models.batch import EventBatch, Refusal, rounds
from models.dimensions import dimensions_of
from models.engines import ClusterPolicy, Engine, Scored
from models.events import ERASURE, TICK
from models.fold import Codes, codes_of, fold, kinds_of, overflow
from models.instants import FOREVER, NEVER, Instants
from models.outcome import Outcome, Work
from models.policy import Policy
from models.population import Cutoffs
from models.table import NO_LABEL, CustomerTable, Rows
from models.wire import CAUSES, LATE, NO_EVENT, TIME, Changes, Wire, WireWriter

#: By Kind; a tick causes nothing.
_CAUSE_OF_KIND: Final = np.array([TIME, *range(1, 7)], dtype=np.int8)


class Segmenter:
    """The policy applied to customer tables. Stateless: everything it remembers is in the table.

    ``activation`` is what is in force, with its cut-offs, and ``since`` the shard's time from which on it is.
    """

    def __init__(self, policy: Policy, activation: Activation | None = None, since: int = NEVER) -> None:
        self.policy = policy
        self.activation = activation
        self.since = since
        self.cutoffs = Cutoffs() if activation is None else activation.cutoffs
        self.number = 0 if activation is None else activation.number
        self.dimensions = dimensions_of(policy, self.cutoffs)
        self._writer = WireWriter(policy, self.cutoffs, NEVER if activation is None else activation.instant)
        names = [dimension.name for dimension in self.dimensions]
        #: For each dimension, which earlier ones its labels are made of.
        self._made_of = [[i for i, name in enumerate(names) if name in each.reads] for each in self.dimensions]
        self._dwell = [getattr(each, "dwell", None) for each in policy.dimensions.values()]
        self._scored = [isinstance(each, Scored) for each in policy.dimensions.values()]
        self._moving = {d for d, name in enumerate(names) if name in policy.moving}
        #: A label that its dwell holds moves with these kinds of the customer's own events.
        self._own = [kinds_of(each.reads) for each in self.dimensions]
        self._renewal = [self._renewed_by(each) for each in policy.dimensions.values()]
        self._first = self._firsts(names)

    def _renewed_by(self, dimension: Engine) -> int:
        """The cause of what this activation moves in a dimension."""
        if self.activation is None:
            return TIME
        learned = self.activation.cause == "population" and isinstance(dimension, ClusterPolicy)
        return CAUSES.index("model" if learned else self.activation.cause)

    def _firsts(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Whether what this activation moves in a dimension is history, as everybody is labelled there."""
        first = np.zeros(len(names), dtype=np.bool_)
        if self.activation is not None:
            for d, name in enumerate(names):
                first[d] = self.activation.backfill or name in self.activation.first or first[self._made_of[d]].any()
        return first

    def apply(
        self,
        table: CustomerTable,
        batch: EventBatch,
        times: Instants,
        backfill: NDArray[np.bool_],
        told_until: int = NEVER,
        most: int | None = None,
    ) -> Outcome:
        """Fold a batch into the table.

        ``times`` is the shard's time at each record, never decreasing; ``backfill`` whether it is history. So is
        every deadline before ``told_until``. Of the rows that no record touches, the deadlines of at most ``most``
        are applied.
        """
        work = Work(times, [], [], told_until, set())
        refused: list[int] = []
        events = (batch.kind != TICK).nonzero()[0]
        customers = batch.customer
        rows = table.place(customers if len(events) == len(batch) else [customers[i] for i in events.tolist()])
        work.touch(table, rows)
        codes = codes_of(table, batch)
        for part in rounds(rows):
            refused += self._round(table, batch, codes, events[part], rows[part], work)
        if len(times):
            self._pass_due(table, int(times[-1]), most, work)
        overflowed = [overflow(batch, position) for position in sorted(refused)]
        return self._outcome(table, batch, int(times[-1]) if len(times) else NEVER, work, backfill, overflowed)

    def advance(
        self, table: CustomerTable, instant: int, backfill: bool, most: int | None = None, told_until: int = NEVER
    ) -> Outcome:
        """Let the shard's time reach ``instant``: apply every deadline before it, of at most ``most`` rows.

        Those rows are the ones with the earliest deadlines.
        """
        work = Work(np.array([instant], dtype=np.int64), [], [], told_until, set())
        self._pass_due(table, instant, most, work)
        return self._outcome(table, None, instant, work, np.array([backfill]), [])

    def resume(self, table: CustomerTable, rows: Rows, settled: int, time: int) -> None:
        """Find the deadlines of rows that have just been loaded.

        Every deadline before ``settled`` has been applied, and those of rows that events have touched up to ``time``.
        """
        at, now = np.full(len(rows), settled, dtype=np.int64), np.full(len(rows), time, dtype=np.int64)
        for d in self._moving:
            deadline = self._next_deadline(table, rows, d, at)
            dwell = self._dwell[d]
            if dwell is not None:
                held = (self.dimensions[d].label(table, rows, now) != table.label[rows, d]) & (deadline >= time)
                deadline = np.where(held, np.maximum(self._held_until(table, rows, d, dwell), settled), deadline)
            table.deadline[table.deadline_of[d]][rows] = deadline
        self._relabel(table, rows[table.activation[rows] < self.number])
        table.note_deadlines(rows)

    def adopt(self, table: CustomerTable) -> None:
        """Make every label that this activation changes due; its rows move with the next deadlines."""
        self._relabel(table, table.rows)

    def _relabel(self, table: CustomerTable, rows: Rows) -> None:
        if self.activation is None or not len(rows):
            return
        by_policy = self.activation.cause == "policy"
        at = np.full(len(rows), self.since, dtype=np.int64)
        for d, dimension in enumerate(self.dimensions):
            # What is made of other dimensions follows when they move.
            if by_policy or self._scored[d]:
                moved = dimension.label(table, rows, at) != table.label[rows, d]
                due = at - 1
                dwell, deadline = self._dwell[d], table.deadline[table.deadline_of[d]]
                if dwell is not None and not by_policy:
                    due = np.maximum(due, self._held_until(table, rows, d, dwell))
                later = self._next_deadline(table, rows, d, at) if d in self._moving else deadline[rows]
                deadline[rows] = np.where(moved, due, later)
        table.note_deadlines(rows)

    def _foresee(self, table: CustomerTable, rows: Rows, d: int, at: Instants) -> None:
        """Note when the rows' labels, as they are from ``at`` on, may move next without an event, if ever."""
        if d in self._moving:
            table.deadline[table.deadline_of[d]][rows] = self._next_deadline(table, rows, d, at)

    def _next_deadline(self, table: CustomerTable, rows: Rows, d: int, at: Instants) -> Instants:
        """When time alone may move the rows' labels next, not before ``at`` nor within the dimension's dwell."""
        deadline = self.dimensions[d].deadline(table, rows, at)
        dwell = self._dwell[d]
        if dwell is None:
            return deadline
        held = self._held_until(table, rows, d, dwell)
        return np.where(deadline < FOREVER, np.maximum(deadline, held), FOREVER)

    @staticmethod
    def _held_until(table: CustomerTable, rows: Rows, d: int, dwell: int) -> Instants:
        """The end of each row's dwell in a dimension. To have no label holds nobody."""
        return np.where(table.label[rows, d] == NO_LABEL, NEVER, table.changed_at[d][rows] + dwell)

    def _round(
        self,
        table: CustomerTable,
        batch: EventBatch,
        codes: Codes,
        positions: NDArray[np.int64],
        rows: Rows,
        work: Work,
    ) -> list[int]:
        """One event for each of ``rows``. Returns the positions that would overflow a total."""
        self._pass_deadlines(table, rows, work.times[positions], work)
        erasing = batch.kind[positions] == ERASURE
        if erasing.any():
            self._erase(table, batch, positions[erasing], rows[erasing], work)
            positions, rows = positions[~erasing], rows[~erasing]
        unknown = table.is_blank(rows)
        folded = fold(table, batch, positions, rows, codes)
        refused: list[int] = positions[folded.overflowed].tolist()
        if not folded.counted.all():
            positions, rows, unknown = positions[folded.counted], rows[folded.counted], unknown[folded.counted]
        found, changed = len(work.found), set(folded.changed)
        new = unknown.nonzero()[0]
        for d, dimension in enumerate(self.dimensions):
            if self._dwell[d] is not None or not changed.isdisjoint(dimension.reads):
                # A label that its dwell holds moves with the customer's own events, not with others' in the round.
                own = slice(None) if self._dwell[d] is None else np.isin(batch.kind[positions], self._own[d])
                moved = self._label(table, batch, d, positions[own], rows[own], work)
            elif len(new):
                # A label may also say that nothing is known.
                moved = self._label(table, batch, d, positions[new], rows[new], work)
            else:
                continue
            if moved:
                changed.add(dimension.name)
        table.note_deadlines(rows)
        work.show_labels(table, found)
        return refused

    def _label(
        self, table: CustomerTable, batch: EventBatch, d: int, positions: NDArray[np.int64], rows: Rows, work: Work
    ) -> bool:
        """Label ``rows`` anew in a dimension after the events at ``positions``. Returns whether any has moved."""
        dimension, times = self.dimensions[d], work.times[positions]
        after = dimension.label(table, rows, times)
        moved = (after != table.label[rows, d]).nonzero()[0]
        if len(moved):
            p, r, t, label = positions[moved], rows[moved], times[moved], after[moved]
            occurred, previous = batch.occurred_at[p], table.changed_at[d][r]
            # Late: an earlier change is overtaken, or time has already overtaken what the event did.
            late = (occurred < previous) | (dimension.label(table, r, occurred) != label)
            cause = np.where(late, LATE, _CAUSE_OF_KIND[batch.kind[p]]).astype(np.int8)
            effective = np.where(late, np.maximum(t, previous), occurred)
            self._move(table, r, d, label, cause, effective, effective, p, p, work)
        self._foresee(table, rows, d, times)
        return len(moved) > 0

    def _pass_due(self, table: CustomerTable, instant: int, most: int | None, work: Work) -> None:
        """Apply the deadlines before ``instant`` of the whole table, or of at most ``most`` rows of it."""
        if most is None:
            rows = table.due(instant)
        else:
            rows, others = table.next_due(instant, most)
            # No further than to the earliest deadline left, which is the shard's time for whoever loads it next.
            instant = min(instant, others + 1)
        work.touch(table, rows)
        self._pass_deadlines(table, rows, np.full(len(rows), instant, dtype=np.int64), work)

    def _pass_deadlines(self, table: CustomerTable, rows: Rows, before: Instants, work: Work) -> None:
        """Apply the deadlines of ``rows`` that lie before their instant ``before``, in time order, until none does."""
        if table.earliest_deadline >= before.max(initial=NEVER):
            return
        while len(rows):
            soonest = table.soonest[rows]
            due = soonest < before
            if not due.all():
                rows, before, soonest = rows[due], before[due], soonest[due]
            if not len(rows):
                return
            found = len(work.found)
            decided = np.searchsorted(work.times, soonest, side="right")
            # Set anew for rows that were not yet labelled under the activation: it is what is due.
            renewed = (table.activation[rows] < self.number) & (soonest == self.since - 1)
            columns = [deadline[rows] == soonest for deadline in table.deadline]
            table.deadline[-1][rows[columns[-1]]] = FOREVER
            moved: dict[int, NDArray[np.bool_]] = {}
            for d, dimension in enumerate(self.dimensions):
                affected = columns[table.deadline_of[d]]
                for other in self._made_of[d]:
                    if other in moved:
                        affected = affected | moved[other]
                here = affected.nonzero()[0]
                if not len(here):
                    continue
                r, at = rows[here], soonest[here]
                after = dimension.label(table, r, at + 1)
                differs = after != table.label[r, d]
                if differs.any():
                    m = here[differs]
                    moved[d] = np.zeros(len(rows), dtype=np.bool_)
                    moved[d][m] = True
                    cause = np.where(renewed[m], self._renewal[d], TIME).astype(np.int8)
                    effective = soonest[m] + renewed[m]
                    none = np.full(len(m), NO_EVENT, dtype=np.int64)
                    self._move(
                        table, rows[m], d, after[differs], cause, effective, soonest[m] + 1, decided[m], none, work
                    )
                self._foresee(table, r, d, at + 1)
            table.note_deadlines(rows)
            work.show_labels(table, found)

    def _erase(
        self, table: CustomerTable, batch: EventBatch, positions: NDArray[np.int64], rows: Rows, work: Work
    ) -> None:
        """Forget the rows' customers, publishing a change to no segment in each dimension that had one."""
        found = len(work.found)
        before = table.label[rows].copy()
        changed_at, sequence = [each[rows] for each in table.changed_at], table.sequence[rows]
        quiet = (sequence > 0) & (before == NO_LABEL).all(axis=1)
        work.silent.update(table.index.names(rows[quiet]))
        table.clear(rows)
        table.sequence[rows] = sequence
        for d in range(len(self.dimensions)):
            had = (before[:, d] != NO_LABEL).nonzero()[0]
            r, p = rows[had], positions[had]
            table.label[r, d] = before[had, d]
            effective = np.maximum(batch.occurred_at[p], changed_at[d][had])
            cause = _CAUSE_OF_KIND[batch.kind[p]]
            after = np.full(len(r), NO_LABEL, dtype=np.int16)
            self._move(table, r, d, after, cause, effective, effective, p, p, work)
        work.show_labels(table, found)
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
        work: Work,
    ) -> None:
        """Give the rows their new label and note the change, with the measures as they stand."""
        before = table.label[rows, dimension]
        table.label[rows, dimension] = after
        table.changed_at[dimension][rows] = holds_from
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
                np.empty(0, dtype=np.int16),
            )
        )

    def _outcome(
        self,
        table: CustomerTable,
        batch: EventBatch | None,
        time: int,
        work: Work,
        backfill: NDArray[np.bool_],
        overflowed: list[Refusal],
    ) -> Outcome:
        before = work.before()
        touched = before.rows
        changes = Changes.ordered(work.found, table)
        published = self._wire(table, batch, changes, work, backfill)
        withheld = self._withheld(table, changes)
        blank = table.is_blank(touched)
        gone, dirty = touched[blank], touched[~blank]
        table.activation[dirty] = self.number
        erased = table.index.names(gone)
        table.free(gone)
        forgotten = [customer for customer in erased if customer in work.silent]
        return Outcome(time, changes, published, before, dirty, erased, withheld, forgotten, overflowed)

    def _withheld(self, table: CustomerTable, changes: Changes) -> list[int]:
        """Positions of moves into segments that are too small to be published."""
        found: list[int] = []
        for d, (name, dimension) in enumerate(self.policy.dimensions.items()):
            if dimension.viable is not None and not dimension.viable.publish:
                small = [c for c, label in enumerate(dimension.labels) if f"{name}:{label}" in self.cutoffs.small]
                if small:
                    found += ((changes.dimension == d) & np.isin(changes.after, small)).nonzero()[0].tolist()
        return sorted(found)

    def _wire(
        self,
        table: CustomerTable,
        batch: EventBatch | None,
        changes: Changes,
        work: Work,
        backfill: NDArray[np.bool_],
    ) -> Wire:
        """The changes as they are published, in the same order."""
        history = backfill[changes.decided] | ((changes.event == NO_EVENT) & (changes.effective_at < work.told_until))
        history |= (changes.cause > LATE) & self._first[changes.dimension]
        events = () if batch is None else batch.event_id
        return self._writer.write(table, changes, events, work.times, history)
