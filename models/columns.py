"""Column: a value for each row. RememberedIds: a few ids for each, or more. What nobody has takes no memory."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Ids that lie beside each row. Most customers never have more; who has gets a place for all that are remembered.
_BESIDE: Final = 2


class Column:
    """A value for each row, ``blank`` until it is set. Until any is, the column takes no memory.

    Numbers that the store has as uint32 are stored so here, too, and read as int64. What a slice gives may be a view,
    or nothing that can be written to: only to be looked at.
    """

    def __init__(self, blank: float, stored: DTypeLike = np.int64) -> None:
        self._blank = np.array(blank, dtype=stored)
        self._read = np.int64 if self._blank.dtype == np.uint32 else self._blank.dtype
        self._values: NDArray[Any] = np.broadcast_to(self._blank, 0)
        #: Whether no row has ever been given another value than blank.
        self.untouched = True

    def __getitem__(self, rows: Any) -> Any:
        return self._values[rows].astype(self._read, copy=False)

    def __setitem__(self, rows: Any, values: Any) -> None:
        if self.untouched:
            # NaN is what differs from itself.
            same = values == self._blank if self._blank == self._blank else values != values
            if np.all(same):
                return
            size, self.untouched = len(self._values), False
            self._values = np.full(size, self._blank) if self._blank != 0 else np.zeros(size, self._blank.dtype)
        self._values[rows] = values

    def resize(self, used: int, size: int) -> None:
        """Have room for ``size`` rows; those after the first ``used`` may be used once they were appended."""
        self._values = np.broadcast_to(self._blank, size) if self.untouched else grown(self._values, used, size)

    def append(self, first: int, end: int) -> None:
        """Let the rows from ``first`` to ``end`` be blank; not sooner, as memory costs most when first written."""
        if not self.untouched and self._blank != 0:
            self._values[first:end] = self._blank

    def clear(self, rows: Any) -> None:
        """Let rows be blank again."""
        if not self.untouched:
            self._values[rows] = self._blank


class Places:
    """Numbered places, handed out: those that were given back first, then the next one."""

    def __init__(self, used: int = 0) -> None:
        #: No place from this one on has been handed out.
        self.used = used
        self._free: list[int] = []

    def take(self, count: int) -> list[int]:
        """So many places that nobody has."""
        freed = [self._free.pop() for _ in range(min(len(self._free), count))]
        first, self.used = self.used, self.used + count - len(freed)
        return [*freed, *range(first, self.used)]

    def give_back(self, places: list[int]) -> None:
        """Places that nobody has any more."""
        self._free += places


class RememberedIds:
    """The latest ids of each row, ``most`` at most. No id is 0."""

    def __init__(self, most: int) -> None:
        self.most: Final = most
        self._few = min(most, _BESIDE)
        self._beside = np.zeros((0, self._few), dtype=np.uint64)
        #: How many there have been. Beyond ``most`` only where the next one's place is in the ring: below twice that.
        self._count = np.zeros(0, dtype=np.uint16)
        #: Where a row's further ids lie; those with none share the first place, which stays empty.
        self._apart_at = np.zeros(0, dtype=np.uint32)
        self._apart = np.zeros((1, most - self._few), dtype=np.uint64)
        self._places = Places(used=1)

    def counts(self, rows: Any) -> NDArray[np.int64]:
        """How many ids each row has."""
        counts: NDArray[np.int64] = np.minimum(self._count[rows], self.most).astype(np.int64)
        return counts

    def any(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row has any id."""
        has: NDArray[np.bool_] = self._count[rows] > 0
        return has

    def has(self, rows: NDArray[np.int64], ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each row has its id."""
        found: NDArray[np.bool_] = (self._beside.take(rows, axis=0) == ids[:, None]).any(axis=1)
        if self._places.used > 1:
            found |= (self._apart.take(self._apart_at[rows], axis=0) == ids[:, None]).any(axis=1)
        return found

    def add(self, rows: NDArray[np.int64], ids: NDArray[np.uint64]) -> None:
        """Remember an id for each of different rows, instead of the row's oldest if it has ``most``."""
        count = self._count[rows]
        place = count % self.most
        beside = place < self._few
        if beside.all():
            self._beside[rows, place] = ids
        else:
            self._beside[rows[beside], place[beside]] = ids[beside]
            apart_at = self._places_apart(rows[~beside])
            self._apart[apart_at, place[~beside] - self._few] = ids[~beside]
        count += 1
        count[count == 2 * self.most] = self.most
        self._count[rows] = count

    def oldest_first(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The ids of each row, and 0 after them: an array of ``most`` columns."""
        ids = np.concatenate([self._beside[rows], self._apart[self._apart_at[rows]]], axis=1)
        turned = (self._count[rows] > self.most).nonzero()[0]
        if len(turned):
            order = (self._count[rows[turned], None] + np.arange(self.most)) % self.most
            ids[turned] = np.take_along_axis(ids[turned], order, axis=1)
        return ids

    def load(self, rows: NDArray[np.int64], ids: NDArray[np.uint64], counts: NDArray[np.int64]) -> None:
        """Give rows that have none so many ids each, the latest of those given, which are oldest first."""
        if (counts > self.most).any():
            newest = np.maximum(counts - self.most, 0)[:, None] + np.arange(min(self.most, ids.shape[1]))
            ids = np.take_along_axis(ids, np.minimum(newest, ids.shape[1] - 1), axis=1)
            counts = np.minimum(counts, self.most)
        few = ids[:, : self._few]
        self._beside[rows, : few.shape[1]] = few
        more = (counts > self._few).nonzero()[0]
        if len(more):
            apart, apart_at = ids[more, self._few : self.most], self._places_apart(rows[more])
            self._apart[apart_at, : apart.shape[1]] = apart
        self._count[rows] = counts

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Forget the rows' ids."""
        self._count[rows], self._beside[rows] = 0, 0
        apart = self._apart_at[rows]
        apart = apart[apart > 0]
        self._apart[apart] = 0
        self._places.give_back(apart.tolist())
        self._apart_at[rows] = 0

    def resize(self, used: int, size: int) -> None:
        """Have room for ``size`` rows."""
        self._beside, self._count = grown(self._beside, used, size), grown(self._count, used, size)
        self._apart_at = grown(self._apart_at, used, size)

    def _places_apart(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Where the rows' further ids lie; those who have no such place get one."""
        new = rows[self._apart_at[rows] == 0]
        before = self._places.used
        self._apart_at[new] = self._places.take(len(new))
        if (used := self._places.used) > len(self._apart):
            self._apart = grown(self._apart, before, used + used // 4 + 1024)
        places: NDArray[np.uint32] = self._apart_at[rows]
        return places


def grown(values: NDArray[Any], used: int, size: int) -> NDArray[Any]:
    """The first rows with room for ``size`` rows, zero beyond them, which takes no memory yet."""
    found = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
    found[:used] = values[:used]
    return found
