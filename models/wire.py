"""Changes as they are published: columns to JSON text.

Several labels of a customer move by one event or at one instant, and everything but the move itself is the same in
all of these changes: it is written once. Building the text from pieces costs a fifth of building dictionaries and
dumping them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from json.encoder import encode_basestring as quoted
from typing import Any, Final, NamedTuple, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from models.changes import Cause, SegmentChanged, change_id_of
from models.engines import Profile
from models.instants import DAY, FOREVER, NEVER, Instants, format_column, format_instant
from models.policy import Policy
from models.population import Cutoffs
from models.table import CustomerTable, Labels, Rows

CAUSES: Final[tuple[Cause, ...]] = (
    "time", "purchase", "refund", "signup", "erasure", "profile", "survey", "late_event", "policy", "population",
    "model",
)  # fmt: skip
TIME, LATE, ERASURE = (CAUSES.index(cause) for cause in ("time", "late_event", "erasure"))
#: An event position that stands for "no event": time, a policy or the population did it.
NO_EVENT: Final = -1
#: Moves whose texts are kept.
_MOVES_KEPT: Final = 10_000


class Changes(NamedTuple):
    """Changes as columns. ``decided`` is the position of the deciding record, ``event`` of the causing one."""

    row: Rows
    dimension: NDArray[np.int64]
    before: Labels
    after: NDArray[np.int16]
    cause: NDArray[np.int8]
    effective_at: Instants
    decided: NDArray[np.int64]
    event: NDArray[np.int64]
    sequence: NDArray[np.int64]
    orders: NDArray[np.int64]
    net: NDArray[np.int64]
    last_purchase_at: Instants
    segments: Labels

    @classmethod
    def none(cls, dimensions: int) -> Changes:
        """No change."""
        none = np.empty(0, dtype=np.int64)
        return cls(
            none, none, none.astype(np.int16), none.astype(np.int16), none.astype(np.int8), none, none, none, none,
            none, none, none, np.empty((0, dimensions), dtype=np.int16),
        )  # fmt: skip

    @classmethod
    def ordered(cls, found: Sequence[Changes], table: CustomerTable) -> Changes:
        """All that was found by deciding record, lapse before event, deadline, customer_id, dimension."""
        if not found:
            return cls.none(len(table.dimensions))
        columns: list[Any] = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        every = cls(*columns)
        by_event = every.event != NO_EVENT
        deadline = np.where(by_event, FOREVER, every.effective_at)
        # An event has one customer, so names decide only between those whom time moves at one instant.
        customer = np.zeros(len(every.row), dtype=np.int64)
        names = table.index.names(every.row[~by_event])
        customer[~by_event] = np.unique(np.array(names), return_inverse=True)[1]
        order = np.lexsort((every.sequence, customer, deadline, by_event, every.decided))
        columns = [column[order] for column in every]
        return cls(*columns)

    def moves(self, table: CustomerTable) -> dict[tuple[str, str, str, str], int]:
        """How many changes there are of each dimension, label before, label after ("" for none) and cause."""
        columns = (column.tolist() for column in (self.dimension, self.before, self.after, self.cause))
        found = {}
        for (d, before, after, cause), times in Counter(zip(*columns, strict=True)).items():
            # The code of no segment is -1.
            labels = (*table.labels[d], "")
            found[table.dimensions[d], labels[before], labels[after], CAUSES[cause]] = times
        return found


class _Snapshot(NamedTuple):
    """A customer's labels, as a JSON object, after the change numbered ``sequence``."""

    sequence: int
    segments: str
    decided_at: str
    policy_version: int


class Wire(Sequence[SegmentChanged]):
    """Changes as JSON, each with what its message needs beside it; looked at, each is the dictionary it says."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.ids: list[str] = []
        self.customers: list[str] = []
        self.effective_at: list[str] = []
        #: By customer; None once erased.
        self._snapshots: dict[str, _Snapshot | None] = {}

    @classmethod
    def of(cls, changes: Sequence[SegmentChanged]) -> Wire:
        """Changes that are dictionaries."""
        if isinstance(changes, cls):
            return changes
        wire = cls()
        for change in changes:
            customer, segments = change["customer_id"], change["segments"]
            wire.values.append(orjson.dumps(change))
            wire.ids.append(change["change_id"])
            wire.customers.append(customer)
            wire.effective_at.append(change["effective_at"])
            after = _Snapshot(change["sequence"], _json(segments), change["decided_at"], change["policy_version"])
            erased = change["cause"] == "erasure" and not any(segments.values())
            wire._snapshots[customer] = None if erased else after
        return wire

    def snapshots(self) -> Iterator[tuple[str, bytes | None]]:
        """Each customer's labels after their last change, as JSON; None for an erased customer."""
        for customer, after in self._snapshots.items():
            if after is None:
                yield customer, None
            else:
                yield (
                    customer,
                    (
                        f'{{"customer_id":{quoted(customer)},"sequence":{after.sequence},"segments":{after.segments},'
                        f'"as_of":"{after.decided_at}","policy_version":{after.policy_version}}}'
                    ).encode(),
                )

    def where(self, chosen: NDArray[np.bool_]) -> Wire:
        """Only the chosen changes, and the snapshots of their customers."""
        wire, kept = Wire(), chosen.nonzero()[0].tolist()
        wire.values = [self.values[i] for i in kept]
        wire.ids = [self.ids[i] for i in kept]
        wire.customers = [self.customers[i] for i in kept]
        wire.effective_at = [self.effective_at[i] for i in kept]
        wire._snapshots = {customer: self._snapshots[customer] for customer in wire.customers}
        return wire

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, at: int) -> SegmentChanged: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[SegmentChanged]: ...
    def __getitem__(self, at: int | slice) -> SegmentChanged | Sequence[SegmentChanged]:
        if isinstance(at, slice):
            return [orjson.loads(value) for value in self.values[at]]
        change: SegmentChanged = orjson.loads(self.values[at])
        return change

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


class WireWriter:
    """Writes changes under one policy and its cut-offs.

    ``activation`` is the instant that names what moves neither by an event nor by a deadline.
    """

    def __init__(self, policy: Policy, cutoffs: Cutoffs, activation: int) -> None:
        self._policy = policy
        self._names = tuple(policy.dimensions)
        self._cutoffs = cutoffs
        self._activation = f"activation:{activation}"
        #: There are few different moves.
        self._move: Final = lru_cache(_MOVES_KEPT)(self._described)
        as_of = None if cutoffs.as_of == NEVER else format_instant(cutoffs.as_of)
        self._versions = f'"policy_version":{policy.version},"population_as_of":{_json(as_of)},"backfill":'

    def write(
        self,
        table: CustomerTable,
        changes: Changes,
        events: Sequence[str],
        times: Instants,
        history: NDArray[np.bool_],
    ) -> Wire:
        """The changes in their order.

        ``events`` are the batch's event ids, ``times`` the shard's time at each record, ``history`` says of each
        change whether it is.
        """
        wire = Wire()
        if not len(changes.row):
            return wire
        starts = _starts(changes, history)
        ends = [*starts[1:].tolist(), len(changes.row)]
        moves = self._moves_of(table, changes)
        sequences, begin, values, ids = changes.sequence.tolist(), 0, wire.values, wire.ids
        for head, end in zip(self._heads(table, changes, starts, events, times, history), ends, strict=True):
            customer, ident, source, effective, rest, segments, decided = head
            opening = f'","customer_id":{quoted(customer)},"sequence":'
            for i in range(begin, end):
                said, move = moves[i]
                change_id = change_id_of(f"{ident}{said}{source}")
                ids.append(change_id)
                values.append(f'{{"change_id":"{change_id}{opening}{sequences[i]},{move}{rest}'.encode())
            wire.customers += [customer] * (end - begin)
            wire.effective_at += [effective] * (end - begin)
            after = None if segments is None else _Snapshot(sequences[end - 1], segments, decided, self._policy.version)
            wire._snapshots[customer] = after
            begin = end
        return wire

    def _heads(
        self,
        table: CustomerTable,
        changes: Changes,
        starts: NDArray[np.int64],
        events: Sequence[str],
        times: Instants,
        history: NDArray[np.bool_],
    ) -> Iterator[tuple[str, str, str, str, str, str | None, str]]:
        """For each run of changes that differ in nothing but the move: what is the same in them."""
        money = self._policy.converter
        orders, effective_at = changes.orders[starts], changes.effective_at[starts]
        last = np.where(orders > 0, changes.last_purchase_at[starts], 0)
        columns = zip(
            table.index.names(changes.row[starts]), changes.cause[starts].tolist(), changes.event[starts].tolist(),
            effective_at.tolist(), format_column(effective_at), _repeated(times[changes.decided[starts]]),
            history[starts].tolist(), orders.tolist(), changes.net[starts].tolist(),
            np.maximum((effective_at - last) // DAY, 0).tolist(), self._segments(table, changes.segments[starts]),
            strict=True,
        )  # fmt: skip
        for customer, cause, position, instant, effective, decided, told, orders, net, days, segments in columns:
            if position != NO_EVENT:
                source, event = f"event:{events[position]}", quoted(events[position])
            else:
                source, event = (f"deadline:{instant}" if cause <= LATE else self._activation), "null"
            rest = (
                f'"cause":"{CAUSES[cause]}","event_id":{event},"effective_at":"{effective}","decided_at":"{decided}",'
                f'{self._versions}{"true" if told else "false"},"rfm":{{"recency_days":{days if orders else "null"},'
                f'"frequency":{orders},"monetary":"{money.text(net)}","currency":"{money.base}"}},'
                f'"segments":{segments}}}'
            )
            ident = f"{len(customer)}:{customer}|"
            yield customer, ident, source, effective, rest, None if cause == ERASURE else segments, decided

    def _segments(self, table: CustomerTable, codes: Labels) -> list[str]:
        """Each row of label codes as a JSON object. Customers in the same segments share one text."""
        parts = [_parts(name, tuple(labels)) for name, labels in zip(self._names, table.labels, strict=True)]
        width, data = codes.itemsize * codes.shape[1], np.ascontiguousarray(codes).tobytes()
        known: dict[bytes, str] = {}
        found = []
        for i in range(len(codes)):
            key = data[i * width : (i + 1) * width]
            text = known.get(key)
            if text is None:
                each = zip(parts, codes[i].tolist(), strict=True)
                text = known[key] = f"{{{','.join([part[code] for part, code in each])}}}"
            found.append(text)
        return found

    def _moves_of(self, table: CustomerTable, changes: Changes) -> list[tuple[str, str]]:
        """Each change's part of a change_id and of the text."""
        labels: list[list[str | None]] = [[*each, None] for each in table.labels]
        moves = zip(changes.dimension.tolist(), changes.before.tolist(), changes.after.tolist(), strict=True)
        return [self._move(d, labels[d][before], labels[d][after]) for d, before, after in moves]

    def _described(self, d: int, before: str | None, after: str | None) -> tuple[str, str]:
        name = self._names[d]
        dimension, model = self._policy.dimensions[name], self._cutoffs.clusters.get(name)
        profile = dimension.profiles.get(after or "", Profile())
        learned = dict(zip(dimension.labels, model.titles, strict=True)) if model is not None else {}
        said = {
            "dimension": name,
            "from": before,
            "to": after,
            "title": profile.title or learned.get(after or ""),
            "channel": profile.channel,
            "viable": f"{name}:{after}" not in self._cutoffs.small,
            "model_version": None if model is None else model.version,
        }
        return f"{name}|{before or ''}|{after or ''}|", f"{_json(said)[1:-1]},"


@lru_cache
def _parts(dimension: str, labels: tuple[str, ...]) -> list[str]:
    """How ``segments`` says that a customer has each of a dimension's labels, and last, where -1 finds it, none."""
    return [f'"{dimension}":{_json(label)}' for label in (*labels, None)]


def _repeated(instants: Instants) -> list[str]:
    """``format_column`` of instants of which many are the same."""
    if (instants == instants[0]).all():
        return format_column(instants[:1]) * len(instants)
    different, place = np.unique(instants, return_inverse=True)
    texts = format_column(different)
    return [texts[i] for i in place.tolist()]


def _starts(changes: Changes, history: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where a change differs from the one before it in more than the move."""
    differs = np.zeros(len(changes.row), dtype=np.bool_)
    differs[0] = True
    for column in (changes.row, changes.event, changes.effective_at, changes.cause, changes.decided, history):
        differs[1:] |= column[1:] != column[:-1]
    # Of one row, event and instant; but an erased customer's successor may bear the same.
    differs[1:] |= changes.sequence[1:] != changes.sequence[:-1] + 1
    return differs.nonzero()[0]
