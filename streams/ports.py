"""The protocols between the shell's parts: StateStore and Publisher. wiring.py names the classes behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from models.activation import Activation
from models.counts import Count
from models.events import Role
from models.population import Summary
from streams.commit import OutboxEntry, ShardCommit, ShardHeader

#: What is stored as of an instant by which nobody has learned a model.
NO_MODEL: Final = b"null"


class StateStore(Protocol):
    """Where shards live. Every method may raise StoreUnavailable; each write happens as a whole or not at all."""

    def hurried(self) -> AbstractContextManager[bool]:
        """Within it, this thread waits a second at most for a store that does not answer, if it says that it does."""
        ...

    def register(self, partitions: int, group: str, cluster: str = "") -> None:
        """Claim the namespace for a fleet. Raises FleetMismatch if it is another's or has other partitions.

        ``cluster`` is the id of the Kafka cluster whose offsets are stored, empty if it is not known.
        """
        ...

    def partitions(self) -> int | None:
        """The number of partitions the namespace was claimed for, None if it never was."""
        ...

    def header(self, shard: int) -> ShardHeader:
        """What the store holds of the shard beside its customers; empty if it holds nothing."""
        ...

    def owner(self, shard: int) -> str | None:
        """The token of the shard's only writer, None if there is none."""
        ...

    def rebuilding(self) -> str | None:
        """The name of the rebuild that is under way, during which shards lose their owners; None if none is."""
        ...

    def acquire(
        self, shard: int, token: str, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int]
    ) -> ShardHeader:
        """Become the shard's only writer; whoever was before is refused from now on.

        ``offsets`` and ``backfill_until`` are kept only where nothing is stored yet.
        """
        ...

    def size(self, shard: int) -> int:
        """How many customers there are."""
        ...

    def rows(self, shard: int) -> Iterator[list[tuple[str, bytes]]]:
        """All packed rows with their customers, in parts."""
        ...

    def row(self, shard: int, customer: str) -> bytes | None:
        """One packed row, or None."""
        ...

    def rows_of(self, shard: int, customers: Sequence[str]) -> list[tuple[str, bytes]]:
        """The packed rows of those customers who are there."""
        ...

    def segments(self, shard: int) -> Mapping[str, Count]:
        """Size of each segment by ``dimension:label``."""
        ...

    def latest_activation(self) -> int:
        """The number of the latest activation, 0 if there is none."""
        ...

    def activation(self, number: int) -> Activation:
        """One activation. Raises StateError if it is not there."""
        ...

    def policy_text(self, version: int) -> str | None:
        """The TOML text of a policy that was ever activated."""
        ...

    def population(self) -> tuple[int, Summary] | None:
        """The latest summary of all shards together, and the instant it was made as of."""
        ...

    def summarised(self, shard: int) -> Sequence[int]:
        """The instants as of which summaries of the shard are kept, ascending."""
        ...

    def summary(self, shard: int, instant: int) -> Summary | None:
        """The shard's population as of an instant, empty before its first, None while it is not known."""
        ...

    def activate(
        self, activation: Activation, policy_text: str | None = None, population: Summary | None = None
    ) -> bool:
        """Append an activation, with its policy if that is new and the population its cut-offs are of.

        Returns False, and does nothing, unless its number is one more than the latest.
        """
        ...

    def learners(self) -> tuple[int | None, Mapping[str, bytes]]:
        """The next offset of the samples topic, None before the first commit of learners; each dimension's as JSON."""
        ...

    def commit_learners(
        self, start: int | None, end: int, learners: Mapping[str, bytes], models: Mapping[tuple[str, int], bytes]
    ) -> None:
        """Write learners by dimension and the models published by them, by dimension and instant, up to offset ``end``.

        Learners that are not among them stay, and so does a model that was published before. Raises LostBatch, and
        then nothing was written, unless ``start`` is the next offset that the store has, None if it has none.
        """
        ...

    def learned_model(self, dimension: str, as_of: int) -> bytes | None:
        """The ClusterModel published as of an instant as JSON; null if there was none, None while it is not known."""
        ...

    def commit(self, commit: ShardCommit) -> None:
        """Write all of it. Raises StaleOwner or LostBatch, and then nothing was written."""
        ...

    def acknowledge(self, shard: int, entry_ids: Sequence[str]) -> int:
        """Remove published entries from the outbox. Returns how many of them were there."""
        ...


class Upkeep(StateStore, Protocol):
    """A StateStore that an operator has rebuilt, or moved to more partitions.

    While customers are moved, every shard belongs to whoever moves them: raises StaleOwner for anybody else.
    """

    def begin_rebuild(self, name: str, *, again: bool = False) -> str:
        """Say that a rebuild is under way. Returns the name of one that has not ended, if there is, unless again."""
        ...

    def end_rebuild(self, name: str) -> None:
        """Say that a rebuild is over; another that has begun since is not."""
        ...

    def rewind(self, shard: int, rebuild: str, policy: int) -> bool:
        """Forget everything but what the shard has told, once for each name of a rebuild, and its owner.

        What waits in the outbox stays. Returns False, and does nothing, while not all has been told that is due, or the
        shard has not taken the activation ``policy`` yet.
        """
        ...

    def claim(self, shard: int, token: str) -> None:
        """Become the one who may move customers from and to the shard; whoever owned it is refused."""
        ...

    def spread(self, source: int, shards: Sequence[int], lineage: str, token: str) -> None:
        """Give new shards what they need of the shard from which their customers come, but for the customers."""
        ...

    def put_rows(self, shard: int, rows: Sequence[tuple[str, bytes]], token: str) -> None:
        """Write packed rows."""
        ...

    def remove_rows(self, shard: int, customers: Sequence[str], token: str) -> None:
        """Remove rows."""
        ...


class Moment(NamedTuple):
    """Parts of a shard as they were at one moment; ``cursor`` is where the next rows begin, 0 if there are no more."""

    header: ShardHeader
    segments: Mapping[str, Count]
    rows: Sequence[tuple[str, bytes]]
    cursor: int


class AuditedStore(StateStore, Protocol):
    """A store that can be compared with something while others write to it."""

    def moment(self, shard: int, cursor: int | None, customers: Sequence[str] = (), count: int = 5_000) -> Moment:
        """One atomic look: about ``count`` rows from a cursor on, 0 first, or those of ``customers`` if it is None.

        Rows that are there all the while are seen at least once on the way from cursor to cursor.
        """
        ...


class Publisher(Protocol):
    """Sends what commits have to publish."""

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Send every message of the entries, in order; return once the broker has acknowledged all of them.

        Raises PublishRefused for a message that the broker will never take.
        """
        ...

    async def publish_snapshots(self, snapshots: Mapping[str, bytes | None]) -> None:
        """The same for snapshots by customer; None says that nothing is known of the customer any more."""
        ...
