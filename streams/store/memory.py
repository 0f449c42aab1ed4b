"""MemoryStore: a StateStore in a dictionary, for replays and tests. It holds the same bytes as Redis would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from models.events import Role
from models.rows import Layout
from streams.commit import Count, OutboxEntry, ShardCommit, ShardHeader
from streams.errors import FleetMismatch, LostBatch, StaleOwner
from streams.store.codec import ordered_values


@dataclass
class _Shard:
    owner: str | None = None
    commits: int = 0
    time: int | None = None
    offsets: dict[Role, int] = field(default_factory=dict)
    backfill_until: dict[Role, int] = field(default_factory=dict)
    layouts: dict[int, Layout] = field(default_factory=dict)
    customers: dict[str, bytes] = field(default_factory=dict)
    outbox: dict[str, bytes] = field(default_factory=dict)
    segments: dict[str, Count] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


class MemoryStore:
    """See StateStore."""

    def __init__(self) -> None:
        self._shards: dict[int, _Shard] = {}
        self._fleet: tuple[int, str] | None = None

    def _shard(self, shard: int) -> _Shard:
        return self._shards.setdefault(shard, _Shard())

    def register(self, partitions: int, group: str) -> None:
        """See StateStore."""
        self._fleet = self._fleet or (partitions, group)
        if self._fleet != (partitions, group):
            raise FleetMismatch(f"this store belongs to group {self._fleet[1]!r} with {self._fleet[0]} partitions")

    def partitions(self) -> int | None:
        """See StateStore."""
        return self._fleet[0] if self._fleet else None

    def header(self, shard: int) -> ShardHeader:
        """See StateStore."""
        s = self._shard(shard)
        entries = sorted((OutboxEntry.decode(i, raw) for i, raw in s.outbox.items()), key=lambda e: e.number)
        return ShardHeader(
            dict(s.offsets),
            dict(s.backfill_until),
            s.time,
            dict(s.layouts),
            ordered_values(s.values.items()),
            entries,
            s.owner,
            s.commits,
        )

    def acquire(
        self, shard: int, token: str, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int]
    ) -> ShardHeader:
        """See StateStore."""
        s = self._shard(shard)
        s.owner = token
        s.offsets = {**offsets, **s.offsets}
        s.backfill_until = {**backfill_until, **s.backfill_until}
        return self.header(shard)

    def rows(self, shard: int) -> Iterator[list[tuple[str, bytes]]]:
        """See StateStore."""
        yield list(self._shard(shard).customers.items())

    def row(self, shard: int, customer: str) -> bytes | None:
        """See StateStore."""
        return self._shard(shard).customers.get(customer)

    def segments(self, shard: int) -> Mapping[str, Count]:
        """See StateStore."""
        return dict(self._shard(shard).segments)

    def commit(self, commit: ShardCommit) -> None:
        """See StateStore."""
        s = self._shard(commit.shard)
        if s.owner != commit.token:
            raise StaleOwner(f"shard {commit.shard} has another owner")
        if commit.number != s.commits + 1:
            raise LostBatch(f"shard {commit.shard} has {s.commits} commits, this one is number {commit.number}")
        for role, (start, _) in commit.ranges.items():
            if s.offsets.get(role) != start:
                raise LostBatch(
                    f"shard {commit.shard}: {role} is at {s.offsets.get(role)}, the batch starts at {start}"
                )
        s.offsets.update({role: end for role, (_, end) in commit.ranges.items()})
        s.commits = commit.number
        s.time = commit.time
        s.layouts[commit.layout.id] = commit.layout
        s.customers.update(commit.rows)
        for customer in commit.erased:
            s.customers.pop(customer, None)
        s.segments = dict(commit.segments)
        s.values.update(commit.values)
        if commit.entry is not None:
            s.outbox[commit.entry.id] = commit.entry.encode()

    def acknowledge(self, shard: int, entry_ids: Sequence[str]) -> None:
        """See StateStore."""
        for entry_id in entry_ids:
            self._shard(shard).outbox.pop(entry_id, None)
