"""EventBatch: validated records as columns, their order, and their rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, count
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.events import Role
from models.instants import Instants

#: So many different texts are not worth looking through.
_FEW_TEXTS: Final = 16


class Record(Protocol):
    """One record as a Kafka client gives it.

    ``timestamp`` is in milliseconds since 1970; ``timestamp_type`` says who stamped it, 1 for the broker.
    """

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def timestamp_type(self) -> int | None: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class Refusal(NamedTuple):
    """A record that cannot be used, and why."""

    role: Role
    record: Record
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Texts:
    """A column of texts of which many are alike: the different ones, and the place of each row's among them."""

    distinct: list[str | None]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, column: Sequence[str | None]) -> Texts:
        """Each row's text, as such a column."""
        distinct: dict[str | None, int] = defaultdict(count().__next__)
        place = np.fromiter(map(distinct.__getitem__, column), dtype=np.int64, count=len(column))
        return cls(list(distinct), place)

    def column(self) -> list[str | None]:
        """Each row's text."""
        return [self.distinct[place] for place in self.place.tolist()]

    def met(self) -> Texts:
        """The same column, whose different texts are in the order in which its rows have them first, and no others."""
        size = len(self.place)
        first = np.full(len(self.distinct), size)
        np.minimum.at(first, self.place, np.arange(size))
        order = np.argsort(first)[: np.count_nonzero(first < size)]
        rank = np.empty(len(first), dtype=np.int64)
        rank[order] = np.arange(len(order))
        return Texts([self.distinct[place] for place in order.tolist()], rank[self.place])

    def take(self, positions: NDArray[np.int64]) -> Texts:
        """The rows at ``positions``, without most texts that only others have: what waits is taken and joined again."""
        taken = Texts(self.distinct, self.place[positions])
        return taken.met() if len(self.distinct) > 2 * len(positions) + _FEW_TEXTS else taken

    @staticmethod
    def concat(parts: Sequence[Texts]) -> Texts:
        """The rows of all."""
        known = Texts.of([text for part in parts for text in part.distinct])
        starts = accumulate((len(part.distinct) for part in parts), initial=0)
        places = [start + part.place for start, part in zip(starts, parts, strict=False)]
        return Texts(known.distinct, known.place[np.concatenate(places)])


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Validated records of one shard as columns, in the order in which they are folded.

    ``amount`` is in minor units of the base currency, ``score`` a survey's in hundredths (0 of other events), instants
    are int64 microseconds. ``attributes`` has the texts that are kept or tallied, ``numbers`` the numeric attributes
    that are kept, NaN where absent. A tick has an empty customer.
    """

    rank: NDArray[np.int8]
    offset: NDArray[np.int64]
    recorded_at: Instants
    occurred_at: Instants
    kind: NDArray[np.int8]
    amount: NDArray[np.int64]
    score: NDArray[np.int64]
    event_hash: NDArray[np.uint64]
    customer: list[str]
    event_id: list[str]
    record: list[Record]
    attributes: Mapping[str, Texts]
    numbers: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.customer)

    def take(self, positions: NDArray[np.int64]) -> EventBatch:
        """The rows at ``positions``, in that order."""
        at = positions.tolist()
        return EventBatch(**{field.name: _taken(getattr(self, field.name), positions, at) for field in fields(self)})

    @staticmethod
    def concat(batches: Sequence[EventBatch]) -> EventBatch:
        """The rows of all, one batch after the other. All must have been read under one policy."""
        if len(batches) == 1:
            return batches[0]
        names = [field.name for field in fields(EventBatch)]
        return EventBatch(**{name: _joined([getattr(batch, name) for batch in batches]) for name in names})


def _taken(column: Any, positions: NDArray[np.int64], at: list[int]) -> Any:
    """A column, or each of several by name, at ``positions``; ``at`` are the same as a list."""
    if isinstance(column, np.ndarray):
        return column[positions]
    if isinstance(column, list):
        return [column[i] for i in at]
    if isinstance(column, Texts):
        return column.take(positions)
    return {name: _taken(each, positions, at) for name, each in column.items()}


def _joined(parts: list[Any]) -> Any:
    """Columns, or several by name, one behind the other."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    if isinstance(parts[0], Texts):
        return Texts.concat(parts)
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def merge_order(batches: Sequence[EventBatch], instants: Sequence[Instants]) -> NDArray[np.int64]:
    """Positions in ``concat(batches)``, a batch a topic, in the order (instant, topic rank, offset).

    The heads of the topics are compared, so that each topic keeps its offset order: a record that is earlier than
    the one before it on its topic follows that one directly.
    """
    heads = np.concatenate([np.maximum.accumulate(each) for each in instants])
    rank = np.concatenate([batch.rank for batch in batches])
    offset = np.concatenate([batch.offset for batch in batches])
    return np.lexsort((offset, rank, heads))


def rounds(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Positions of ``rows`` in parts, in each of which a row occurs at most once; a row keeps its order."""
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    sorted_rows = rows[order]
    differs = sorted_rows[1:] != sorted_rows[:-1]
    if differs.all():
        yield np.arange(len(rows))
        return
    starts = np.concatenate(([True], differs)).nonzero()[0]
    occurrence = np.empty(len(rows), dtype=np.int64)
    occurrence[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    by_occurrence = np.argsort(occurrence, kind="stable")
    yield from np.split(by_occurrence, np.cumsum(np.bincount(occurrence))[:-1])
