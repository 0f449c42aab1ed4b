"""A fleet in process: shards on one store in memory, which follow policies and cut-offs as workers do.

A crash is an input: any commit may fail before or after it is written, and then its shard is dropped and loaded again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from models.batch import EventBatch
from models.clusters import ClusterModel
from models.counts import Count
from models.events import ROLE_OF_KIND, ROLES, Role
from models.instants import FOREVER, NEVER
from models.partitioner import partition_of
from models.policy import Policy
from streams.activations import Activations
from streams.commit import Range
from streams.customers import customers_of
from streams.processor import BatchProcessor, Clock, Shard, Step
from streams.store.memory import MemoryStore
from tests.unit.build import DAY, START, Event, Rec, record

#: What becomes of a commit.
Fate = Literal["written", "crash before", "crash after"]
Change = Mapping[str, Any]


class Crash(Exception):
    """The process is gone."""


@dataclass
class Member:
    """One shard with its log, and the changes it has published, in order, repeats included."""

    number: int
    log: list[Event] = field(default_factory=list)
    published: list[Change] = field(default_factory=list)
    processor: BatchProcessor | None = None

    @property
    def up(self) -> BatchProcessor:
        """The processor, which is loaded."""
        assert self.processor is not None
        return self.processor


class Fleet:
    """``fate`` says what becomes of each commit, ``most`` is the size of batches and slices."""

    def __init__(
        self,
        policy: Policy,
        shards: int,
        most: int = 1000,
        fate: Callable[[], Fate] = lambda: "written",
        check: Callable[["Fleet", Member], None] | None = None,
    ) -> None:
        self.store = MemoryStore()
        self.shards = [Member(number) for number in range(shards)]
        self._policy = policy
        self._most = most
        self._fate = fate
        self._check = check
        for member in self.shards:
            self._load(member)

    def _load(self, member: Member) -> None:
        topics: dict[Role, str] = {role: role for role in ROLES}
        activations = Activations(self.store, self._policy)
        number = Shard(member.number, len(self.shards), topics)
        member.processor = BatchProcessor(number, activations, self.store, Clock.EVENT)
        header = member.processor.load(dict.fromkeys(ROLES, 0), {})
        for entry in header.entries:
            member.published += entry.changes
            self.store.acknowledge(member.number, [entry.id])

    def apply(self, policy: Policy, instant: int, again: bool = False) -> None:
        """Activate a policy; the shards take it at their next step."""
        Activations(self.store, self._policy).apply(policy, instant, True, again=again)
        for member in self.shards:
            member.up.activations.refresh()

    def put(self, events: Sequence[Event]) -> None:
        """Append events to the logs, a tick to every one, and process until nothing is left to do."""
        for event in events:
            customer = event.get("customer_id")
            for member in self.shards:
                if customer is None or member.number == partition_of(customer.encode(), len(self.shards)):
                    member.log.append(event)
        self.settle()

    def settle(self) -> None:
        """Every shard takes steps until none has any to take."""
        busy = True
        while busy:
            moved = [self._try(member) for member in self.shards]
            busy = any(moved)
        for member in self.shards:
            assert self.store.header(member.number).offsets["purchases"] == len(member.log), "a shard waits in vain"

    def _try(self, member: Member) -> bool:
        """One step of a shard, and a restart if it crashes. Returns whether there was anything to do."""
        try:
            return self._advance(member)
        except Crash:
            self._load(member)
            return True

    def _advance(self, member: Member) -> bool:
        processor = member.up
        step = processor.follow()
        if step is None and processor.time != NEVER:
            step = processor.advance(processor.time, self._most)
        if step is not None:
            self._commit(member, step)
            return True
        done = self.store.header(member.number).offsets["purchases"]
        if done == len(member.log):
            return False
        batch, covered = self._taken(member, done)
        if len(batch):
            self._commit(member, processor.fold(batch, (), dict.fromkeys(ROLES, covered), self._most))
            return True
        (first,) = self._read(member, done, 1).occurred_at.tolist()
        step = processor.stop(first, self._most)
        if step is not None:
            self._commit(member, step)
            return True
        known = processor.activations.latest
        self._teach(processor.policy)
        processor.activations.merge(len(self.shards))
        processor.activations.refresh()
        return processor.activations.latest > known

    def _teach(self, policy: Policy) -> None:
        """Publish what is learned of two clusters by each instant: first nothing, then this and that by turns."""
        for shard in range(len(self.shards)):
            for instant in self.store.summarised(shard):
                for name in policy.clusters:
                    model = taught(instant, instant // policy.population.every % 3)
                    published = {(name, instant): b"null" if model is None else model.encode()}
                    self.store.commit_learners(self.store.learners()[0], 0, {}, published)

    def _read(self, member: Member, start: int, count: int) -> EventBatch:
        records: dict[Role, list[Rec]] = {role: [] for role in ROLES}
        for offset in range(start, min(start + count, len(member.log))):
            event = member.log[offset]
            records[ROLE_OF_KIND[event["kind"]]].append(record(event, offset))
        batches = []
        for role in ROLES:
            batch, refused = member.up.read(role, records[role], FOREVER)
            assert not refused, refused
            batches.append(batch)
        whole = EventBatch.concat(batches)
        return whole.take(np.argsort(whole.offset, kind="stable"))

    def _taken(self, member: Member, done: int) -> tuple[EventBatch, Range]:
        """The next events, up to where time must stop."""
        batch = self._read(member, done, self._most)
        times = np.maximum.accumulate(np.maximum(batch.occurred_at, member.up.time))
        beyond = np.flatnonzero(times >= member.up.stop_at)
        size = int(beyond[0]) if len(beyond) else len(batch)
        return batch.take(np.arange(size)), Range(done, done + size)

    def _commit(self, member: Member, step: Step) -> None:
        fate = self._fate()
        if fate == "crash before":
            raise Crash
        member.up.commit(step)
        if fate == "crash after":
            raise Crash  # nobody has published it: whoever loads the shard does
        entry = step.commit.entry
        if entry is not None:
            member.published += entry.changes
            self.store.acknowledge(member.number, [entry.id])
        if step.reload:
            self._load(member)
        if self._check is not None:
            self._check(self, member)

    def customers(self, member: Member) -> Iterator[dict[str, Any]]:
        """Every stored customer of a shard."""
        return customers_of(self.store, member.number)

    def recounted(self, member: Member) -> dict[str, Count]:
        """The stored segments, counted again from the stored rows; empty ones left out."""
        counted: dict[str, Count] = {}
        dimensions = {name.partition(":")[0] for name in self.store.segments(member.number)}
        for customer in self.customers(member):
            revenue = int(customer["net"].replace(".", ""))
            for dimension, label in customer["segments"].items():
                if label is not None and dimension in dimensions:
                    name = f"{dimension}:{label}"
                    counted[name] = counted.get(name, Count(0, 0)).plus(Count(1, revenue, customer["orders"]))
        return counted


def taught(instant: int, turn: int) -> ClusterModel | None:
    """Two clusters by recency and orders: one of three models, of which one is none."""
    centres = ((-1.0, 0.5), (1.0, -0.5)) if turn == 1 else ((-0.5, 0.0), (0.5, 1.5))
    return None if not turn else ClusterModel(
        version=1 + (instant - START) // DAY % 1000, as_of=instant, features=("recency_days", "orders"),
        mean=(2.0, 0.9), scale=(1.0, 0.4), centres=centres, titles=("near", "far"), shares=(0.5, 0.5), samples=10,
        drifts=0, error=1.0, silhouette=0.0,
    )  # fmt: skip


def distinct(changes: Sequence[Change]) -> list[Change]:
    """Changes without those whose id came before."""
    return list({change["change_id"]: change for change in reversed(changes)}.values())[::-1]
