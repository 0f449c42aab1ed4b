"""Preview: what activating a policy would do to a state, found by doing exactly that to a copy in memory.

The copy goes through the very processor that workers run, so the changes it publishes are those that workers would.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from models.activation import Activation
from models.changes import SegmentChanged
from models.clusters import ClusterModel
from models.dimensions import Dimension, dimensions_of
from models.engines import Scored
from models.events import ROLES
from models.instants import DAY, NEVER
from models.outcome import Outcome
from models.policy import Policy, Tally
from models.population import Cutoffs, Summary, cutoffs_of, summary_of
from models.sampling import draw_of
from models.table import CustomerTable
from streams.activations import Activations
from streams.errors import ConfigurationError
from streams.ports import StateStore
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.replay import Replay
from streams.store.memory import MemoryStore

#: Customers that are relabelled at once; bounds how many changes are held.
_SLICE: Final = 20_000


class RecordedState(Replay):
    """A replay of which the state is wanted, not the changes."""

    @property
    def store(self) -> MemoryStore:
        """The state as the replay has left it."""
        return self._store


class Move(NamedTuple):
    """From one segment of a dimension, or none, to another."""

    dimension: str
    before: str | None
    after: str | None


class Sample(NamedTuple):
    """A customer who would move, and why: under the new policy, and under the old one if it has the dimension."""

    change: SegmentChanged
    reason: str
    reason_before: str | None


@dataclass
class Moves:
    """How many customers make each move, how many move at all, and how many moves would not be published."""

    counts: Counter[Move] = field(default_factory=Counter)
    customers: int = 0
    withheld: int = 0
    samples: dict[Move, list[Sample]] = field(default_factory=dict)

    def of(self, dimension: str) -> dict[Move, int]:
        """The moves of a dimension, the most frequent first."""
        found = [(move, count) for move, count in self.counts.items() if move.dimension == dimension]
        return dict(sorted(found, key=lambda each: (-each[1], each[0].before or "", each[0].after or "")))


@dataclass
class Preview:
    """What would happen at once, at the shards' ``time``, and ``later``: when the population is first summarised.

    That is found as if it were summarised at once; None if there are cut-offs for every dimension already.
    """

    active: Policy
    policy: Policy
    activation: Activation
    customers: int = 0
    time: int = NEVER
    moves: Moves = field(default_factory=Moves)
    later: Moves | None = None
    notes: list[str] = field(default_factory=list)


Take = Callable[[SegmentChanged], object]


class _Samples:
    """What one shard's changes add up to, with a few customers for each move: the first by customer_id."""

    def __init__(self, moves: Moves, most: int, take: Take | None) -> None:
        self._moves, self._most, self._take = moves, most, take
        self._customers: set[str] = set()
        self.kept: dict[Move, list[tuple[str, SegmentChanged]]] = {}

    def add(self, outcome: Outcome) -> None:
        """Count the changes of one step."""
        withheld = set(outcome.withheld)
        self._moves.withheld += len(withheld)
        for place, change in enumerate(outcome.published):
            move = Move(change["dimension"], change["from"], change["to"])
            self._moves.counts[move] += 1
            self._customers.add(change["customer_id"])
            if self._take is not None and place not in withheld:
                self._take(change)
            kept = self.kept.setdefault(move, [])
            insort(kept, (change["customer_id"], change), key=lambda each: each[0])
            del kept[self._most :]

    def explain(self, why: Callable[[SegmentChanged], Sample]) -> None:
        """The shard is done: hand over what was found."""
        self._moves.customers += len(self._customers)
        for move, kept in self.kept.items():
            every = [*self._moves.samples.get(move, ()), *(why(change) for _, change in kept)]
            every.sort(key=lambda sample: sample.change["customer_id"])
            self._moves.samples[move] = every[: self._most]


class _Copied:
    """One shard of the copy."""

    def __init__(
        self, number: int, partitions: int, store: MemoryStore, activations: Activations, at: int = NEVER
    ) -> None:
        self._store = store
        self._until = at
        self.processor = BatchProcessor(
            Shard(number, partitions, {role: role for role in ROLES}), activations, store, Clock.EVENT
        )
        self.header = self.processor.load({}, {})

    def _commit(self, step: Step) -> None:
        self.processor.commit(step)
        if step.commit.entry is not None:
            self._store.acknowledge(self.processor.shard.number, [step.commit.entry.id])

    def settle(self, found: _Samples | None = None) -> None:
        """Apply everything that is due."""
        while (step := self.processor.advance(self._until, _SLICE)) is not None:
            self._commit(step)
            if found is not None:
                found.add(step.outcome)

    def follow(self, found: _Samples) -> None:
        """Take the latest activation, as a worker does."""
        while (step := self.processor.follow()) is not None:
            self._commit(step)
            if step.reload:
                self.processor.load({}, {})
            self.settle(found)


def preview(
    source: StateStore,
    partitions: int,
    policy: Policy,
    instant: int,
    *,
    at: int = NEVER,
    samples: int = 5,
    take: Take | None = None,
) -> Preview:
    """What activating ``policy`` at an instant would do to what ``source`` holds, which stays as it is.

    The time of every shard reaches ``at`` first: what is stored may be older, for time that passes and changes nothing
    is not stored. ``take`` gets every change that would be published. Raises ConfigurationError if there is nothing to
    compare with or if the policy counts in another currency, and StateError or StoreUnavailable.
    """
    if not source.latest_activation():
        raise ConfigurationError("there is no active policy to compare with; start a worker first")
    store = MemoryStore()
    store.copy_activations(source)
    activations = Activations(store, policy)
    before = activations.policy(activations.active.policy_version)
    first = activations.newer_policy(0) or activations.latest
    notes: list[str] = []
    activation = _activated(activations, store, policy, instant, notes)
    found = Preview(before, policy, activation, notes=notes)
    shards: list[_Copied] = []
    for number in range(partitions):
        if not store.copy_shard(source, number, first):
            notes.append(
                f"shard {number} was written to while it was read; a few of its customers may be counted wrong"
            )
        if store.header(number).time is None:
            continue
        shard = _Copied(number, partitions, store, activations, at)
        old, taken = shard.processor.table, _Samples(found.moves, samples, take)
        known = dimensions_of(old.policy, activations[shard.header.activation].cutoffs)
        shard.settle()
        found.customers += len(old)
        found.time = max(found.time, shard.processor.time)
        shard.follow(taken)
        taken.explain(_Reasons(shard.processor, dimensions_of(policy, activation.cutoffs), old, known))
        if _unknown(policy, activation.cutoffs):
            shards.append(shard)
    notes += _notes(before, policy, activation.cutoffs)
    if shards:
        found.later = _summarised(shards, store, activations, policy, samples)
    return found


def _activated(
    activations: Activations, store: StateStore, policy: Policy, instant: int, notes: list[str]
) -> Activation:
    """Activate the policy in the copy, also one that must still be given a version of its own."""
    try:
        return activations.apply(policy, instant, True)
    except ConfigurationError as refusal:
        version = active = activations.active.policy_version
        while store.policy_text(version) is not None:
            version += 1
        activation = activations.apply(policy.model_copy(update={"version": version}), instant, True)
        same = policy.text == activations.policy(active).text
        notes.append("this policy is the active one" if same else f"apply will refuse this policy: {refusal}")
        return activation


class _Reasons:
    """Why customers of a shard are where they are, under the new policy and under the one before."""

    def __init__(
        self,
        processor: BatchProcessor,
        dimensions: Sequence[Dimension],
        old: CustomerTable | None = None,
        known: Sequence[Dimension] = (),
    ) -> None:
        self._table, self._time, self._old = processor.table, processor.time, old
        self._now = {each.name: each for each in dimensions}
        self._before = {each.name: each for each in known}

    def __call__(self, change: SegmentChanged) -> Sample:
        customer, dimension = change["customer_id"], change["dimension"]
        reason = self._now[dimension].reason(self._table, self._table.index[customer], self._time)
        before = None
        if self._old is not None and dimension in self._before:
            before = self._before[dimension].reason(self._old, self._old.index[customer], self._time)
        return Sample(change, reason, before)


def _unknown(policy: Policy, cutoffs: Cutoffs) -> list[str]:
    """Dimensions that label nobody because the population has not been summarised."""
    every = policy.dimensions.items()
    return [name for name, each in every if isinstance(each, Scored) and name not in cutoffs.known]


def _summarised(
    shards: Sequence[_Copied], store: MemoryStore, activations: Activations, policy: Policy, samples: int
) -> Moves:
    """What the first summary of the population will do, were it made of the customers as they are now."""
    as_of = max(shard.processor.time for shard in shards)
    population = Summary.merged([summary_of(shard.processor.table, as_of) for shard in shards])
    active = activations.active
    learned = dict(active.cutoffs.clusters)
    if unknown := [name for name in policy.clusters if name not in learned]:
        learned |= _learned([shard.processor.table for shard in shards], unknown, as_of)
    cutoffs = cutoffs_of(policy, population, as_of, Cutoffs(), learned)
    store.activate(Activation(active.number + 1, "population", active.policy_version, as_of, NEVER, False, cutoffs))
    activations.refresh()
    moves = Moves()
    for shard in shards:
        taken = _Samples(moves, samples, None)
        shard.follow(taken)
        taken.explain(_Reasons(shard.processor, dimensions_of(policy, cutoffs)))
    return moves


def _learned(tables: Sequence[CustomerTable], dimensions: Sequence[str], as_of: int) -> dict[str, ClusterModel]:
    """The first models of cluster dimensions, as far as there are customers enough."""
    from models.clustering import learn  # late: River takes seconds to be imported

    draws = [
        draw_of(table, name, as_of, shard, len(tables)) for name in dimensions for shard, table in enumerate(tables)
    ]
    return {name: model for (name, _), model in learn({}, draws).models.items() if model is not None}


def _notes(before: Policy, policy: Policy, cutoffs: Cutoffs) -> Iterator[str]:
    """What the moves alone do not say."""
    for what, new, old in (
        ("attributes", policy.attributes.keep, before.attributes.keep),
        ("numbers", policy.attributes.numbers, before.attributes.numbers),
        ("tallies", [_said(each) for each in policy.tallies], [_said(each) for each in before.tallies]),
    ):
        if missing := [name for name in new if name not in old]:
            yield (
                f"{what} that this policy keeps and the state does not have: {', '.join(missing)}; they are unknown "
                "until events arrive or the state is rebuilt"
            )
    if unknown := _unknown(policy, cutoffs):
        yield f"nobody has a segment in {', '.join(unknown)} until the population is summarised under this policy"
    if gone := [name for name in before.dimensions if name not in policy.dimensions]:
        yield f"the policy no longer has {', '.join(gone)}; their segments end without a change"
    if policy.money.rates != before.money.rates:
        yield "other rates count for purchases from now on; what is stored stays as it was converted"


def _said(tally: Tally) -> str:
    decay = "" if tally.half_life is None else f", halved every {tally.half_life / DAY:g} days"
    return f"{tally.of} by {tally.by}{decay}"
