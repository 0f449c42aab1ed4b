"""MemoryStore: a StateStore in a dictionary, for replays and tests. It holds the same bytes as Redis would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from models.activation import Activation
from models.counts import Count
from models.errors import StateError
from models.events import Role
from models.instants import NEVER
from models.population import Summary
from models.rows import Layout
from streams.commit import OutboxEntry, ShardCommit, ShardHeader, Silence
from streams.errors import FleetMismatch, LostBatch, StaleOwner
from streams.ports import Moment, StateStore
from streams.store.codec import ordered_values

#: How often a shard is read at most to find one that nobody writes to meanwhile.
_READS = 3


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
    settled: int | None = None
    activation: int = 0
    since: int = NEVER
    summaries: dict[int, bytes] = field(default_factory=dict)
    first_summary: int | None = None
    summarised: int | None = None
    silence: Silence = field(default_factory=Silence)
    lineage: str = ""


class MemoryStore:
    """See StateStore."""

    def __init__(self) -> None:
        self._shards: dict[int, _Shard] = {}
        self._fleet: tuple[int, str] | None = None
        self._cluster = ""
        self._rebuilding: str | None = None
        self._activations: list[bytes] = []
        self._policies: dict[int, str] = {}
        self._population: tuple[int, bytes] | None = None
        self._samples_offset: int | None = None
        self._learners: dict[str, bytes] = {}
        self._models: dict[tuple[str, int], bytes] = {}

    def _shard(self, shard: int) -> _Shard:
        return self._shards.setdefault(shard, _Shard())

    def hurried(self) -> AbstractContextManager[bool]:
        """See StateStore."""
        return nullcontext(True)

    def register(self, partitions: int, group: str, cluster: str = "") -> None:
        """See StateStore."""
        self._fleet = self._fleet or (partitions, group)
        self._cluster = self._cluster or cluster
        if self._fleet != (partitions, group) or (cluster and self._cluster != cluster):
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
            s.settled,
            s.activation,
            s.since,
            s.summarised,
            s.silence,
            s.lineage,
        )

    def owner(self, shard: int) -> str | None:
        """See StateStore."""
        return self._shard(shard).owner

    def rebuilding(self) -> str | None:
        """See StateStore."""
        return self._rebuilding

    def begin_rebuild(self, name: str, *, again: bool = False) -> str:
        """See Upkeep."""
        self._rebuilding = name if again else self._rebuilding or name
        return self._rebuilding

    def end_rebuild(self, name: str) -> None:
        """See Upkeep."""
        self._rebuilding = None if self._rebuilding == name else self._rebuilding

    def rewind(self, shard: int, rebuild: str, policy: int) -> bool:
        """See Upkeep."""
        s = self._shard(shard)
        told = s.silence
        if told.rebuild == rebuild:
            return True
        passed = all(s.offsets.get(role, 0) >= offset for role, offset in told.offsets.items())
        behind = bool(s.commits) and s.activation < policy
        if passed and s.time is not None and (s.settled != s.time or behind):
            return False
        silence = Silence(
            {role: max(offset, told.offsets.get(role, 0)) for role, offset in s.offsets.items()},
            max(told.until, NEVER if s.settled is None else s.settled),
            max(told.activation, s.activation),
            max(told.summarised, NEVER if s.summarised is None else s.summarised),
            rebuild,
        )
        self._shards[shard] = _Shard(
            commits=s.commits,
            offsets=dict.fromkeys(s.offsets, 0),
            backfill_until=s.backfill_until,
            outbox=s.outbox,
            silence=silence,
            lineage=s.lineage,
        )
        return True

    def claim(self, shard: int, token: str) -> None:
        """See Upkeep."""
        self._shard(shard).owner = token

    def _moved_by(self, shard: int, token: str) -> _Shard:
        s = self._shard(shard)
        if s.owner != token:
            raise StaleOwner(f"shard {shard} has another owner")
        return s

    def spread(self, source: int, shards: Sequence[int], lineage: str, token: str) -> None:
        """See Upkeep."""
        s = self._moved_by(source, token)
        nobody = Summary.empty().json
        for shard in shards:
            self._shards[shard] = replace(
                s,
                customers=self._moved_by(shard, token).customers,
                offsets=dict.fromkeys(s.offsets, 0),
                backfill_until={},
                layouts=dict(s.layouts),
                values=dict(s.values),
                summaries=dict.fromkeys(s.summaries, nobody),
                silence=replace(s.silence, offsets={}),
                outbox={},
                segments={},
                lineage=lineage,
            )
        s.lineage, s.segments = lineage, {}

    def put_rows(self, shard: int, rows: Sequence[tuple[str, bytes]], token: str) -> None:
        """See Upkeep."""
        self._moved_by(shard, token).customers.update(rows)

    def remove_rows(self, shard: int, customers: Sequence[str], token: str) -> None:
        """See Upkeep."""
        s = self._moved_by(shard, token)
        for customer in customers:
            s.customers.pop(customer, None)

    def acquire(
        self, shard: int, token: str, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int]
    ) -> ShardHeader:
        """See StateStore."""
        s = self._shard(shard)
        s.owner = token
        s.offsets = {**offsets, **s.offsets}
        s.backfill_until = {**backfill_until, **s.backfill_until}
        return self.header(shard)

    def size(self, shard: int) -> int:
        """See StateStore."""
        return len(self._shard(shard).customers)

    def rows(self, shard: int) -> Iterator[list[tuple[str, bytes]]]:
        """See StateStore."""
        yield list(self._shard(shard).customers.items())

    def row(self, shard: int, customer: str) -> bytes | None:
        """See StateStore."""
        return self._shard(shard).customers.get(customer)

    def rows_of(self, shard: int, customers: Sequence[str]) -> list[tuple[str, bytes]]:
        """See StateStore."""
        stored = self._shard(shard).customers
        return [(customer, stored[customer]) for customer in customers if customer in stored]

    def segments(self, shard: int) -> Mapping[str, Count]:
        """See StateStore."""
        return dict(self._shard(shard).segments)

    def moment(self, shard: int, cursor: int | None, customers: Sequence[str] = (), count: int = 5_000) -> Moment:
        """See AuditedStore."""
        stored = self._shard(shard).customers
        rows = [each for each in stored.items() if cursor is not None or each[0] in customers]
        return Moment(self.header(shard), self.segments(shard), rows, 0)

    def latest_activation(self) -> int:
        """See StateStore."""
        return len(self._activations)

    def activation(self, number: int) -> Activation:
        """See StateStore."""
        if not 0 < number <= len(self._activations):
            raise StateError(f"there is no activation {number}")
        return Activation.parse(number, self._activations[number - 1])

    def policy_text(self, version: int) -> str | None:
        """See StateStore."""
        return self._policies.get(version)

    def population(self) -> tuple[int, Summary] | None:
        """See StateStore."""
        return None if self._population is None else (self._population[0], Summary.parse(self._population[1]))

    def summarised(self, shard: int) -> Sequence[int]:
        """See StateStore."""
        return sorted(self._shard(shard).summaries)

    def summary(self, shard: int, instant: int) -> Summary | None:
        """See StateStore."""
        s = self._shard(shard)
        if s.first_summary is not None and instant < s.first_summary:
            return Summary.empty()
        stored = s.summaries.get(instant)
        return None if stored is None else Summary.parse(stored)

    def activate(
        self, activation: Activation, policy_text: str | None = None, population: Summary | None = None
    ) -> bool:
        """See StateStore."""
        if activation.number != len(self._activations) + 1:
            return False
        self._activations.append(activation.json)
        if policy_text is not None:
            self._policies[activation.policy_version] = policy_text
        if population is not None:
            self._population = (activation.cutoffs.as_of, population.json)
        return True

    def learners(self) -> tuple[int | None, Mapping[str, bytes]]:
        """See StateStore."""
        return self._samples_offset, dict(self._learners)

    def commit_learners(
        self, start: int | None, end: int, learners: Mapping[str, bytes], models: Mapping[tuple[str, int], bytes]
    ) -> None:
        """See StateStore."""
        if start != self._samples_offset:
            raise LostBatch(f"the learners are at offset {self._samples_offset}, what was learned begins at {start}")
        self._samples_offset = end
        self._learners.update(learners)
        for place, model in models.items():
            self._models.setdefault(place, model)

    def learned_model(self, dimension: str, as_of: int) -> bytes | None:
        """See StateStore."""
        return self._models.get((dimension, as_of))

    def commit(self, commit: ShardCommit) -> None:
        """See StateStore."""
        s = self._shard(commit.shard)
        if s.owner != commit.token:
            raise StaleOwner(f"shard {commit.shard} has another owner")
        if commit.number != s.commits + 1:
            raise LostBatch(f"shard {commit.shard} has {s.commits} commits, this one is number {commit.number}")
        if commit.activation < s.activation:
            raise StaleOwner(f"shard {commit.shard} is at activation {s.activation}, the commit at {commit.activation}")
        for role, (start, _) in commit.ranges.items():
            if s.offsets.get(role) != start:
                raise LostBatch(
                    f"shard {commit.shard}: {role} is at {s.offsets.get(role)}, the batch starts at {start}"
                )
        s.offsets.update({role: end for role, (_, end) in commit.ranges.items()})
        s.commits = commit.number
        s.time, s.settled = commit.time, commit.settled
        s.activation, s.since = commit.activation, commit.since
        s.layouts[commit.layout.id] = commit.layout
        s.customers.update(commit.rows)
        for customer in commit.erased:
            s.customers.pop(customer, None)
        s.segments = dict(commit.segments)
        s.values.update(commit.values)
        if commit.entry is not None:
            s.outbox[commit.entry.id] = commit.entry.encode()
        if commit.summary is not None:
            s.summarised = commit.summary[0]
            s.summaries[s.summarised] = commit.summary[1]
            if commit.begins and s.first_summary is None:
                s.first_summary = s.summarised
        if commit.forget is not None:
            s.summaries = {instant: each for instant, each in s.summaries.items() if instant > commit.forget}

    def acknowledge(self, shard: int, entry_ids: Sequence[str]) -> int:
        """See StateStore."""
        outbox = self._shard(shard).outbox
        return sum(outbox.pop(entry_id, None) is not None for entry_id in entry_ids)

    def copy_activations(self, source: StateStore) -> None:
        """Hold every activation of another store, with the policies and the population as last summarised."""
        self._activations = []
        for number in range(1, source.latest_activation() + 1):
            activation = source.activation(number)
            self._activations.append(activation.json)
            if activation.policy_version not in self._policies:
                text = source.policy_text(activation.policy_version)
                self._policies |= {} if text is None else {activation.policy_version: text}
        population = source.population()
        self._population = None if population is None else (population[0], population[1].json)

    def copy_shard(self, source: StateStore, shard: int, first: int) -> bool:
        """Hold another store's shard, without outbox and summaries; the source is only read.

        A shard that has not committed under any activation yet is at ``first``, as it is to whoever loads it. Returns
        whether it was read as it was at one moment: not if somebody kept writing to it.
        """
        for _ in range(_READS):
            before = source.header(shard)
            customers = {customer: row for part in source.rows(shard) for customer, row in part}
            header, segments = source.header(shard), source.segments(shard)
            if header.commits == before.commits:
                break
        self._shards[shard] = _Shard(
            owner=header.owner,
            commits=header.commits,
            time=header.time,
            offsets=dict(header.offsets),
            backfill_until=dict(header.backfill_until),
            layouts=dict(header.layouts),
            customers=customers,
            segments=dict(segments),
            values={f"{name}:{code}": text for name, texts in header.values.items() for code, text in enumerate(texts)},
            settled=header.settled,
            activation=header.activation or first,
            since=header.since if header.activation or header.time is None else header.time,
            summarised=header.summarised,
        )
        return header.commits == before.commits
