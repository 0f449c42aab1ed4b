"""Outcome: what one batch or instant did to a customer table. Work: what is found on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from models.batch import Refusal
from models.counts import Standing
from models.instants import Instants
from models.table import CustomerTable, Rows
from models.wire import Changes, Wire


@dataclass(slots=True)
class Outcome:
    """What one batch or instant did to a table.

    ``changes`` and ``published`` are the same rows in the same order: as columns and as wire forms; those at the
    positions ``withheld`` go into segments too small to be published; the customers ``forgotten`` were erased without a
    change, because they were in no segment any more. ``before`` are all rows that may differ, as they stood,
    ``dirty`` those of them to store, ``erased`` the customers to remove, ``time`` is the shard's time after it.
    """

    time: int
    changes: Changes
    published: Wire
    before: Standing
    dirty: Rows
    erased: list[str]
    withheld: list[int] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    overflowed: list[Refusal] = field(default_factory=list)


def nothing(time: int) -> Outcome:
    """No change, and time at an instant."""
    none = np.empty(0, dtype=np.int64)
    return Outcome(time, Changes.none(0), Wire(), Standing(none, none.astype(np.int16), none, none), none, [])


class Work(NamedTuple):
    """An outcome in the making: the shard's time at each record, what has been found so far, and what is history."""

    times: Instants
    found: list[Changes]
    touched: list[Standing]
    told_until: int
    #: Customers who had changes before and were erased without one.
    silent: set[str]

    def touch(self, table: CustomerTable, rows: Rows) -> None:
        """Note how rows stand that are about to change, unless that is noted already."""
        if len(rows) or not self.touched:
            rows = _distinct(rows)
            for noted in self.touched:
                rows = rows[~np.isin(rows, noted.rows)]
            self.touched.append(Standing.of(table, rows))

    def before(self) -> Standing:
        """How all rows stood that have been touched."""
        if len(self.touched) == 1:
            return self.touched[0]
        return Standing(*map(np.concatenate, zip(*self.touched, strict=True)))

    def show_labels(self, table: CustomerTable, first: int) -> None:
        """Complete what was found from ``first`` on: each change shows all labels after its event or instant."""
        for i in range(first, len(self.found)):
            self.found[i] = self.found[i]._replace(segments=table.label[self.found[i].row])


def _distinct(rows: Rows) -> Rows:
    """Each row once, in order; of few rows sooner than ``np.unique``."""
    rows = np.sort(rows)
    return rows[np.concatenate(([True], rows[1:] != rows[:-1]))] if len(rows) else rows
