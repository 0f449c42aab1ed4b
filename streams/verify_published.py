"""What a shard has published, compared with what it must have: changes, snapshots, dead letters.

A message is published after its commit and removed from the outbox once the broker has it. So what was committed at a
moment, and is not in the outbox of that moment, is on the topics by their ends as seen after it; and what is there was
committed by any moment after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from models.batch import Record
from models.events import Role
from models.hashes import hashes_of
from models.instants import format_instant
from models.partitioner import partitions_of
from models.table import NO_LABEL
from streams.commit import OutboxEntry
from streams.processor import BatchProcessor, Shard
from streams.recomputed import ID, Ledger
from streams.shard_log import Log

#: What is read of a change.
_TEXTS: Final = ("change_id", "customer_id", "dimension", "cause", "effective_at")
_TEXTS_OR_NULL: Final = ("from", "to", "event_id")
#: Milliseconds to microseconds.
_MS: Final = 1000


class Part(NamedTuple):
    """A partition of an output topic: what is kept of it, and where it ended."""

    topic: str
    partition: int
    first: int
    end: int


def parts_of(log: Log, topic: str, shard: Shard) -> list[Part]:
    """The partitions on which a shard's customers may be, to their ends now."""
    count = log.partitions(topic)
    mine = [shard.number] if count == shard.partitions else list(range(count))
    return [Part(topic, partition, *log.bounds(topic, partition)) for partition in mine]


def records_of(log: Log, part: Part) -> Iterator[Record]:
    """Every record of a part."""
    reader = log.read(part.topic, part.partition, part.first)
    try:
        while records := reader.take(part.end):
            yield from records
    finally:
        reader.close()


def _ours(log: Log, part: Part, shard: Shard) -> Iterator[Sequence[Record]]:
    """A part's records of this shard's customers, in lists."""
    reader = log.read(part.topic, part.partition, part.first)
    try:
        while records := reader.take(part.end):
            home = partitions_of([record.key or b"" for record in records], shard.partitions)
            yield [records[i] for i in np.flatnonzero(home == shard.number).tolist()]
    finally:
        reader.close()


class Change(NamedTuple):
    """A change as it was read."""

    where: str
    change: Mapping[str, Any]


@dataclass
class Published:
    """The changes on the topic, repeated ones too, in its order."""

    ids: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, dtype=ID))
    who: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    sequence: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ends: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=np.bool_))
    part: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    #: Records that are no changes, by place.
    foreign: list[str] = field(default_factory=list)
    #: Since when (milliseconds) the topic has been kept, if it has lost its beginning.
    kept_since: int | None = None

    @property
    def first(self) -> NDArray[np.int64]:
        """Positions of every id's first record, ascending."""
        return np.sort(np.unique(self.ids, return_index=True)[1])


def _change(value: bytes | None) -> Mapping[str, Any] | None:
    """A change, None if it is none: whatever is read of it is there, and is what it must be."""
    try:
        change: Mapping[str, Any] = orjson.loads(value or b"")
        known = (
            all(isinstance(change[name], str) for name in _TEXTS)
            and all(isinstance(change[name], str | None) for name in _TEXTS_OR_NULL)
            and isinstance(change["segments"], dict)
            and type(change["sequence"]) is int
            and 0 <= change["sequence"] < 2**63
            and len(change["change_id"]) == 2 * len(bytes.fromhex(change["change_id"])) == 2 * ID.itemsize
        )
    except (ValueError, KeyError, TypeError):
        return None
    return change if known else None


def published(log: Log, parts: Sequence[Part], shard: Shard) -> Published:
    """Read a shard's changes."""
    found = Published()
    # As arrays at once: as Python's objects they would be many times as large.
    columns: list[list[NDArray[Any]]] = [[found.ids], [found.who], [found.sequence], [found.ends], [found.part]]
    for part in parts:
        oldest: int | None = None
        for records in _ours(log, part, shard):
            ids, rows = list[bytes](), list[tuple[int, int, bool]]()
            for record in records:
                oldest = record.timestamp if oldest is None else oldest
                change = _change(record.value)
                if change is None:
                    found.foreign.append(f"{part.topic}/{part.partition}@{record.offset}")
                    continue
                gone = change["cause"] == "erasure" and not any(change["segments"].values())
                ids.append(bytes.fromhex(change["change_id"]))
                rows.append((xxh3_64_intdigest(change["customer_id"].encode()), change["sequence"], gone))
            made: list[list[Any]] = [ids, *([row[i] for row in rows] for i in range(3)), [part.partition] * len(ids)]
            for column, new in zip(columns, made, strict=True):
                column.append(np.array(new, dtype=column[0].dtype))
        if part.first:
            found.kept_since = max(found.kept_since or 0, oldest or 0)
    found.ids, found.who, found.sequence, found.ends, found.part = map(np.concatenate, columns)
    return found


@dataclass(frozen=True, slots=True)
class Compared:
    """Whose changes are lost, were never caused, and are out of order, each once a change."""

    lost: NDArray[np.bytes_]
    lost_who: NDArray[np.uint64]
    never: NDArray[np.bytes_]
    never_who: NDArray[np.uint64]
    disordered: NDArray[np.uint64]
    repeated: int
    distinct: int


def compare_changes(found: Published, ledger: Ledger, upto: int, pending: Sequence[OutboxEntry]) -> Compared:
    """The changes on the topic and those that were caused, of which the first ``upto`` must be there."""
    caused, who = ledger.ids, ledger.who
    waiting = np.array([bytes.fromhex(change["change_id"]) for entry in pending for change in entry.changes], dtype=ID)
    missing = np.ones(upto, dtype=np.bool_)
    if upto:
        missing = ~np.isin(caused[:upto], np.concatenate([found.ids, waiting]))
        if found.kept_since is not None:
            # What was published before what is kept is not to be expected; each partition is in the order of causes.
            missing[: _kept_from(found, caused[:upto])] = False
    first = found.first
    never = first[~np.isin(found.ids[first], caused)]
    return Compared(
        caused[:upto][missing],
        who[:upto][missing],
        found.ids[never],
        found.who[never],
        _disordered(found, first),
        len(found.ids) - len(first),
        len(first),
    )


def _kept_from(found: Published, caused: NDArray[np.bytes_]) -> int:
    """Position among what was caused from which on all of it must be there."""
    order = np.argsort(caused, kind="stable")
    at = np.full(len(caused), -1, dtype=np.int64)
    places = np.searchsorted(caused, found.ids, sorter=order)
    known = np.flatnonzero(places < len(caused))
    known = known[caused[order[places[known]]] == found.ids[known]]
    if not len(known):
        return len(caused)
    at = order[places[known]]
    return max(int(at[found.part[known] == part].min()) for part in np.unique(found.part[known]).tolist())


def _disordered(found: Published, first: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Whose sequence does not ascend, repeats left out; after an erasure it begins again."""
    order = first[np.argsort(found.who[first], kind="stable")]
    who, sequence, ends = found.who[order], found.sequence[order], found.ends[order]
    falls = (who[1:] == who[:-1]) & (sequence[1:] <= sequence[:-1]) & ~ends[:-1]
    fallen: NDArray[np.uint64] = np.unique(who[1:][falls])
    return fallen


def changes_of(log: Log, parts: Sequence[Part], shard: Shard, who: frozenset[int]) -> dict[str, list[Change]]:
    """The published changes of a few customers, each id once, in the topic's order."""
    found: dict[str, list[Change]] = {}
    ids: set[str] = set()
    for part in parts:
        for records in _ours(log, part, shard):
            for record in records:
                change = _change(record.value)
                if change is None:
                    continue
                customer, ident = change["customer_id"], change["change_id"]
                if xxh3_64_intdigest(customer.encode()) in who and ident not in ids:
                    ids.add(ident)
                    where = f"{part.topic}/{part.partition}@{record.offset}"
                    found.setdefault(customer, []).append(Change(where, change))
    return found


class Stale(NamedTuple):
    """A snapshot that is not what its customer is."""

    customer: str
    sentence: str


def stale_snapshots(
    log: Log, parts: Sequence[Part], processor: BatchProcessor, moving: NDArray[np.uint64]
) -> tuple[list[Stale], int]:
    """Snapshots that differ from the customers as computed, and how many were compared.

    ``moving`` are customers whose last change may not have been published when the topic's end was seen.
    """
    table, shard = processor.table, processor.shard
    state = np.zeros(table.capacity, dtype=np.int8)  # 0 none, 1 as it must be, 2 removed, 3 stale
    said: dict[str, str] = {}
    gone: dict[str, bool] = {}
    for part in parts:
        for records in _ours(log, part, shard):
            for record in records:
                customer = (record.key or b"").decode(errors="replace")
                row = table.index.get(customer)
                if row is None:
                    gone[customer] = record.value is not None
                    continue
                why = "" if record.value is None else _wrong(processor, row, record.value)
                state[row] = 2 if record.value is None else 3 if why else 1
                if why:
                    said[customer] = f"the snapshot {part.topic}/{part.partition}@{record.offset} {why}"
    rows = table.rows
    due = rows[(table.sequence[rows] > 0) & ~np.isin(hashes_of(table.index.names(rows)), moving)]
    stale = []
    wrong = due[state[due] != 1]
    for customer, row in zip(table.index.names(wrong), wrong.tolist(), strict=True):
        known = {0: "there is no snapshot of this customer", 2: "the snapshot was removed, and the customer is there"}
        stale.append(Stale(customer, known.get(int(state[row])) or said[customer]))
    still = set(moving.tolist())
    for customer, there in gone.items():
        if there and xxh3_64_intdigest(customer.encode()) not in still:
            stale.append(Stale(customer, "there is a snapshot, and nothing is known about this customer (erased?)"))
    return stale, len(due)


def _wrong(processor: BatchProcessor, row: int, value: bytes) -> str:
    table = processor.table
    try:
        snapshot = orjson.loads(value)
        segments, sequence = snapshot["segments"], snapshot["sequence"]
    except (ValueError, KeyError, TypeError):
        return "cannot be read"
    if not isinstance(segments, dict):
        return "cannot be read"
    if sequence != int(table.sequence[row]):
        return f"is of change {sequence}, the last is {int(table.sequence[row])}"
    for d, name in enumerate(table.dimensions):
        code = int(table.label[row, d])
        label = None if code == NO_LABEL else table.labels[d][code]
        if segments.get(name) != label:
            return f"says {name} {segments.get(name) or 'none'}, and it is {label or 'none'}"
    return ""


@dataclass(frozen=True, slots=True)
class Letters:
    """Dead letters of a shard's records: code by topic and offset. ``kept_since`` as for changes."""

    codes: Mapping[tuple[str, int], str]
    kept_since: int | None = None


def letters_of(log: Log, topic: str, shard: Shard) -> Letters:
    """Read the dead letters of a shard, to the topic's end."""
    inputs = set(shard.topics.values())
    codes: dict[tuple[str, int], str] = {}
    kept_since: int | None = None
    for partition in range(log.partitions(topic)):
        part = Part(topic, partition, *log.bounds(topic, partition))
        oldest: int | None = None
        for record in records_of(log, part):
            oldest = record.timestamp if oldest is None else oldest
            try:
                letter = orjson.loads(record.value or b"")
                if letter["partition"] == shard.number and letter["topic"] in inputs:
                    codes[letter["topic"], int(letter["offset"])] = str(letter["code"])
            except (ValueError, KeyError, TypeError):
                continue
        if part.first:
            kept_since = max(kept_since or 0, oldest or 0)
    return Letters(codes, kept_since)


def missing_letters(
    letters: Letters, refused: Sequence[tuple[Role, int]], pending: Sequence[OutboxEntry], shard: Shard
) -> list[tuple[str, int]]:
    """Refused records of which there is no letter; not those before the earliest, if older ones are not kept."""
    waiting = {(letter["topic"], letter["offset"]) for entry in pending for letter in entry.dead_letters}
    places = {(shard.topics[role], offset) for role, offset in refused}
    missing = places - letters.codes.keys() - waiting
    if letters.kept_since is not None:
        least = {topic: min((o for t, o in letters.codes if t == topic), default=2**62) for topic, _ in missing}
        missing = {place for place in missing if place[1] >= least[place[0]]}
    return sorted(missing)


def since_text(milliseconds: int) -> str:
    """When the first record that is kept was written."""
    return format_instant(milliseconds * _MS)
