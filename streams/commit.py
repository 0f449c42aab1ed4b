"""What one batch writes, and what a shard is when it is loaded: position, results and state in one typed object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import cramjam
import orjson
from cramjam import zstd

from models.changes import DeadLetter, SegmentChanged
from models.counts import Count
from models.errors import StateError
from models.events import Role
from models.instants import NEVER
from models.rows import Layout
from models.wire import Wire

_ENTRY_FORMAT: Final = 1
#: Bytes from which on an entry is compressed: the messages of one commit are much alike, to a thirtieth.
_LARGE: Final = 16_384
#: The fastest that still finds what lies some kilobytes back.
_LEVEL: Final = 1
#: How a zstd frame begins (RFC 8878, 3.1.1).
_ZSTD: Final = bytes.fromhex("28b52ffd")


@dataclass(frozen=True)
class OutboxEntry:
    """Everything one commit has to publish. ``id`` is ``<the commit's number>-<owner's token>``.

    The changes at the positions ``withheld`` show in snapshots only; the snapshots of the customers ``forgotten``, who
    were erased without a change, are removed. ``draws`` are customers drawn for cluster dimensions, each the JSON of a
    Draw.
    """

    id: str
    changes: Sequence[SegmentChanged]
    dead_letters: Sequence[DeadLetter]
    withheld: Sequence[int] = ()
    forgotten: Sequence[str] = ()
    draws: Sequence[bytes] = ()

    @property
    def number(self) -> int:
        """Its place among the shard's entries."""
        return int(self.id.partition("-")[0])

    @property
    def size(self) -> int:
        """How much there is to publish."""
        return sum(map(len, (self.changes, self.forgotten, self.dead_letters, self.draws)))

    @cached_property
    def wire(self) -> Wire:
        """The changes as they are published."""
        return Wire.of(self.changes)

    @property
    def values(self) -> Sequence[bytes]:
        """The changes as JSON, once for the store and for the topic."""
        return self.wire.values

    def encode(self) -> bytes:
        """The entry as stored: JSON, a large one compressed."""
        rest = orjson.dumps({"dead_letters": self.dead_letters, "withheld": self.withheld, "forgotten": self.forgotten})
        # Joined by hand: changes and draws are text already, and most of an entry.
        changes, draws = b",".join(self.values), b",".join(self.draws)
        plain = b'{"format":%d,"changes":[%b],"draws":[%b],%b' % (_ENTRY_FORMAT, changes, draws, rest[1:])
        return plain if len(plain) < _LARGE else bytes(zstd.compress(plain, _LEVEL))

    @classmethod
    def decode(cls, entry_id: str, stored: bytes) -> OutboxEntry:
        """Read a stored entry. Raises StateError if a newer version wrote it or it is damaged."""
        try:
            entry = orjson.loads(bytes(zstd.decompress(stored)) if stored.startswith(_ZSTD) else stored)
            if entry["format"] != _ENTRY_FORMAT:
                raise StateError(f"outbox entry {entry_id} was stored in format {entry['format']}; run a newer version")
            withheld, forgotten = entry.get("withheld", ()), tuple(entry.get("forgotten", ()))
            draws = tuple(orjson.dumps(draw) for draw in entry.get("draws", ()))
            return cls(entry_id, entry["changes"], entry["dead_letters"], withheld, forgotten, draws)
        except (cramjam.DecompressionError, orjson.JSONDecodeError, KeyError, TypeError):
            raise StateError(f"outbox entry {entry_id} is damaged; restore the store from a backup") from None


class Range(NamedTuple):
    """Offsets [start, end) of one topic: start is where the range before it ended."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ShardCommit:
    """Everything one batch changes in one shard, written as a whole or not at all.

    ``token``, ``number`` and the ranges' starts are the guard: ``number`` is one more than the number of the shard's
    commits so far, so that a commit that was sent twice is written once even if it covers no range. ``segments`` has
    every ``dimension:label`` of the policy with its size, ``values`` every new ``attribute:code`` with its text.

    ``time`` is the shard's time, ``settled`` the instant before which every deadline has been applied: it is earlier
    while many are applied in slices. ``activation`` is the one in force, ``since`` the shard's time from which on it
    is. ``summary`` is the shard's population as of an instant, ``forget`` the instant of one that nobody needs;
    ``begins`` says that nobody was there before it.
    """

    shard: int
    token: str
    number: int
    ranges: Mapping[Role, Range]
    time: int
    settled: int
    activation: int
    since: int
    policy_version: int
    layout: Layout
    rows: Sequence[tuple[str, bytes]]
    erased: Sequence[str]
    segments: Mapping[str, Count]
    values: Mapping[str, str]
    entry: OutboxEntry | None
    summary: tuple[int, bytes] | None = None
    forget: int | None = None
    begins: bool = True

    @property
    def size(self) -> int:
        """How much there is to write: customers, or what is to be published if that is more."""
        return max(len(self.rows) + len(self.erased), 0 if self.entry is None else self.entry.size)


@dataclass(frozen=True, slots=True)
class Silence:
    """What a shard had told before it was rebuilt from the beginning, and does not tell again.

    Records below ``offsets``, deadlines before ``until``, activations up to ``activation``, and draws as of instants up
    to ``summarised``. ``rebuild`` is the rebuild's name, empty if there never was one.
    """

    offsets: Mapping[Role, int] = field(default_factory=dict)
    until: int = NEVER
    activation: int = 0
    summarised: int = NEVER
    rebuild: str = ""


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What a shard's store holds beside its customers.

    ``commits`` is how many commits there were, ``offsets`` the next offset to read of each topic,
    ``backfill_until`` the offset below which records are history since the shard's first start, ``time`` the shard's
    time or None before the first commit. ``settled``, ``activation`` and ``since`` are those of the last commit,
    ``summarised`` is the instant of the last population summary or None. ``lineage`` says that customers have come from
    other shards, whose records are not on this shard's partitions.
    """

    offsets: Mapping[Role, int] = field(default_factory=dict)
    backfill_until: Mapping[Role, int] = field(default_factory=dict)
    time: int | None = None
    layouts: Mapping[int, Layout] = field(default_factory=dict)
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    entries: Sequence[OutboxEntry] = ()
    owner: str | None = None
    commits: int = 0
    settled: int | None = None
    activation: int = 0
    since: int = NEVER
    summarised: int | None = None
    silence: Silence = field(default_factory=Silence)
    lineage: str = ""
