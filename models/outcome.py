"""Outcome: what one batch or instant did to a customer table."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.batch import Refusal
from models.table import Rows
from models.wire import Changes, Wire


@dataclass(slots=True)
class Outcome:
    """What one batch or instant did to a table.

    ``changes`` and ``published`` are the same rows in the same order: as columns and as wire forms; those at the
    positions ``withheld`` go into segments too small to be published; the customers ``forgotten`` were erased without a
    change, because they were in no segment any more. ``touched`` are all rows that may differ,
    ``dirty`` those of them to store, ``erased`` the customers to remove, ``time`` is the shard's time after it.
    """

    time: int
    changes: Changes
    published: Wire
    touched: Rows
    dirty: Rows
    erased: list[str]
    withheld: list[int] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    overflowed: list[Refusal] = field(default_factory=list)


def nothing(time: int) -> Outcome:
    """No change, and time at an instant."""
    none = np.empty(0, dtype=np.int64)
    return Outcome(time, Changes.none(0), Wire(), none, none, [])
