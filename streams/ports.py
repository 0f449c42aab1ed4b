"""The protocols between the shell's parts: StateStore and Publisher. wiring.py names the classes behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from models.events import Role
from streams.commit import Count, OutboxEntry, ShardCommit, ShardHeader


class StateStore(Protocol):
    """Where shards live. Every method may raise StoreUnavailable; each write happens as a whole or not at all."""

    def register(self, partitions: int, group: str) -> None:
        """Claim the namespace for a fleet. Raises FleetMismatch if it is another's or has other partitions."""
        ...

    def partitions(self) -> int | None:
        """The number of partitions the namespace was claimed for, None if it never was."""
        ...

    def header(self, shard: int) -> ShardHeader:
        """What the store holds of the shard beside its customers; empty if it holds nothing."""
        ...

    def acquire(
        self, shard: int, token: str, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int]
    ) -> ShardHeader:
        """Become the shard's only writer; whoever was before is refused from now on.

        ``offsets`` and ``backfill_until`` are kept only where nothing is stored yet.
        """
        ...

    def rows(self, shard: int) -> Iterator[list[tuple[str, bytes]]]:
        """All packed rows with their customers, in parts."""
        ...

    def row(self, shard: int, customer: str) -> bytes | None:
        """One packed row, or None."""
        ...

    def segments(self, shard: int) -> Mapping[str, Count]:
        """Size of each segment by ``dimension:label``."""
        ...

    def commit(self, commit: ShardCommit) -> None:
        """Write all of it. Raises StaleOwner or LostBatch, and then nothing was written."""
        ...

    def acknowledge(self, shard: int, entry_ids: Sequence[str]) -> None:
        """Remove published entries from the outbox; ids that are not there do not matter."""
        ...


class Publisher(Protocol):
    """Sends what commits have to publish."""

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Send every message of the entries, in order; return once the broker has acknowledged all of them.

        Raises PublishRefused for a message that the broker will never take.
        """
        ...
