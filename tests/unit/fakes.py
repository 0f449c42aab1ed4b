"""A worker without servers: a log in lists for Kafka, a store that fails on demand, a publisher that remembers."""

import asyncio
import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from faust.types import TP

from models.activation import Activation
from models.changes import DeadLetter, SegmentChanged
from models.events import ROLE_OF_KIND, ROLES, Role
from models.instants import NEVER, SECOND, parse
from models.partitioner import partition_of
from models.policy import Policy, parse_policy
from models.population import Summary
from streams.activations import Activations
from streams.commit import OutboxEntry, ShardCommit, ShardHeader
from streams.errors import PublishRefused, StoreUnavailable
from streams.kafka.transport import FetchedRecords, LogRange, Progress
from streams.processor import BatchProcessor, Clock, Shard
from streams.settings import Settings
from streams.shards import Shards
from streams.store.memory import MemoryStore
from tests.unit.build import Event, Feeder, Rec, make_policy, record

#: Where draws of customers are.
SAMPLES = TP("cluster-samples", 0)
#: Far more than anything here takes: only a test that hangs gets there.
PATIENCE = 20.0


def quick(**given: Any) -> Settings:
    """Settings that do not keep a test waiting, whatever the environment says."""
    return Settings.model_construct(**{"tick_every": 0.001, "merge_wait": 1000.0, "stop_within": 1.0, **given})


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    for name in ("_FIRST_RETRY", "_LAST_RETRY", "_STALE_RETRY", "_BLOCKED_POLL"):
        monkeypatch.setattr(f"streams.runner.{name}", 0)
    for name in ("_FIRST_RETRY", "_LAST_RETRY"):
        monkeypatch.setattr(f"streams.training.{name}", 0)


async def eventually(condition: Callable[[], object], step: Callable[[], object] = lambda: None) -> None:
    """Let the event loop run, with ``step`` at every turn, until the condition holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        step()
        await asyncio.sleep(0)


async def settle(turns: int = 50) -> None:
    """Let everything run that can."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def kill_everything() -> None:
    """End every other task, whether it wants to or not: a process that is killed is not asked."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=0.01)


def threadless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what belongs into threads in the event loop, and sleep not at all, so that a test is the same every time.

    It can be cancelled before and after, as the real one can: work in a thread goes on when nobody waits for it.
    """

    async def to_thread(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        await asyncio.sleep(0)
        result = call(*args, **named)
        await asyncio.sleep(0)
        return result

    sleep = asyncio.sleep
    monkeypatch.setattr("asyncio.to_thread", to_thread)
    monkeypatch.setattr("asyncio.sleep", lambda seconds: sleep(0))


class FaultyStore(MemoryStore):
    """A MemoryStore whose next calls fail as told: ``faults[method]`` is worked off one entry a call.

    "before": it does not answer, and nothing is written. "after": it writes and the answer is lost. "stolen": another
    worker takes the shard first. "restored": what was stored after ``keep`` is gone first. None: nothing is wrong.
    Threads may share it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, deque[str | None]] = {}
        self.commits: list[ShardCommit] = []
        self._kept: dict[str, Any] = MemoryStore().__dict__
        self._lock = threading.RLock()
        self._inside = False

    def fail(self, method: str, *faults: str | None) -> None:
        """What happens to the next calls of a method."""
        self.faults.setdefault(method, deque()).extend(faults)

    def keep(self) -> None:
        """Make a backup, which the fault "restored" brings back."""
        with self._lock:
            self._kept = self._contents()

    def restore(self) -> None:
        """Bring the backup back."""
        with self._lock:
            self.__dict__.update(copy.deepcopy(self._kept))

    def _contents(self) -> dict[str, Any]:
        """All that is stored: what a MemoryStore itself keeps."""
        return copy.deepcopy({name: self.__dict__[name] for name in MemoryStore().__dict__})

    def lose_activations(self) -> None:
        """As if a version before there were activations had written everything, and no other."""
        with self._lock:
            empty = MemoryStore().__dict__
            self.__dict__.update({name: empty[name] for name in ("_activations", "_policies", "_population")})
            for shard in self._shards.values():
                shard.settled, shard.activation, shard.since = None, 0, NEVER

    def peek(self, shard: int = 0) -> ShardHeader:
        """The header, whatever is to fail."""
        with self._lock:
            return super().header(shard)

    def copy(self) -> MemoryStore:
        """A store of its own with the same contents."""
        other = MemoryStore()
        with self._lock:
            other.__dict__.update(self._contents())
        return other

    def committed(self) -> list[ShardCommit]:
        """The commits that were written and answered."""
        with self._lock:
            return list(self.commits)

    def _call(self, method: str, shard: int, call: Callable[[], Any]) -> Any:
        with self._lock:
            if self._inside:  # one call that another is made of
                return call()
            queue = self.faults.get(method)
            fault = queue.popleft() if queue else None
            if fault == "before":
                raise StoreUnavailable("the store does not answer")
            if fault == "stolen":
                super().acquire(shard, "another-worker", {}, {})
            if fault == "restored":
                self.restore()
            self._inside = True
            try:
                result = call()
            finally:
                self._inside = False
            if fault == "after":
                raise StoreUnavailable("the store's answer was lost")
            return result

    def header(self, shard: int) -> ShardHeader:
        """See StateStore."""
        return self._call("header", shard, partial(super().header, shard))

    def rows(self, shard: int) -> Iterator[list[tuple[str, bytes]]]:
        """See StateStore."""
        every = super().rows
        yield from self._call("rows", shard, lambda: list(every(shard)))

    def acquire(
        self, shard: int, token: str, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int]
    ) -> ShardHeader:
        """See StateStore."""
        return self._call("acquire", shard, partial(super().acquire, shard, token, offsets, backfill_until))

    def latest_activation(self) -> int:
        """See StateStore."""
        return self._call("latest_activation", 0, super().latest_activation)

    def activate(
        self, activation: Activation, policy_text: str | None = None, population: Summary | None = None
    ) -> bool:
        """See StateStore."""
        return self._call("activate", 0, partial(super().activate, activation, policy_text, population))

    def summary(self, shard: int, instant: int) -> Summary | None:
        """See StateStore."""
        return self._call("summary", shard, partial(super().summary, shard, instant))

    def commit(self, commit: ShardCommit) -> None:
        """See StateStore."""
        self._call("commit", commit.shard, partial(super().commit, commit))
        with self._lock:
            self.commits.append(commit)

    def learners(self) -> tuple[int | None, Mapping[str, bytes]]:
        """See StateStore."""
        return self._call("learners", 0, super().learners)

    def commit_learners(
        self, start: int | None, end: int, learners: Mapping[str, bytes], models: Mapping[tuple[str, int], bytes]
    ) -> None:
        """See StateStore."""
        self._call("commit_learners", 0, partial(super().commit_learners, start, end, learners, models))

    def acknowledge(self, shard: int, entry_ids: Sequence[str]) -> int:
        """See StateStore."""
        return self._call("acknowledge", shard, partial(super().acknowledge, shard, entry_ids))


class FakePublisher:
    """Remembers what was published. ``block`` makes it wait; ``faults`` as in FaultyStore, "before" or "after".

    After a fault the broker has taken nothing, or everything, and the worker is told that it refused.
    """

    def __init__(self) -> None:
        self.changes: list[SegmentChanged] = []
        self.dead_letters: list[DeadLetter] = []
        #: Snapshots that were published by themselves.
        self.snapshots: list[dict[str, bytes | None]] = []
        #: Where draws go.
        self.kafka: FakeKafka | None = None
        self.calls: list[list[str]] = []
        self.faults: deque[str | None] = deque()
        #: Entries whose publication was acknowledged.
        self.done: set[str] = set()
        self._gate: asyncio.Event | None = None

    def block(self) -> None:
        """Acknowledge nothing until ``release``."""
        self._gate = asyncio.Event()

    def release(self) -> None:
        """Acknowledge again."""
        assert self._gate is not None
        self._gate.set()

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """See Publisher."""
        fault = self.faults.popleft() if self.faults else None
        if fault == "before":
            raise PublishRefused("the broker refuses")
        if self._gate is not None:
            await self._gate.wait()
        await asyncio.sleep(0)
        self.calls.append([entry.id for entry in entries])
        for entry in entries:
            withheld = set(entry.withheld)
            self.changes += [change for place, change in enumerate(entry.changes) if place not in withheld]
            self.dead_letters += entry.dead_letters
            for draw in entry.draws:
                assert self.kafka is not None
                self.kafka.draw(draw)
        if fault == "after":
            raise PublishRefused("the broker refuses")
        self.done |= {entry.id for entry in entries}

    async def publish_snapshots(self, snapshots: Mapping[str, bytes | None]) -> None:
        """See Publisher."""
        await asyncio.sleep(0)
        self.snapshots.append(dict(snapshots))

    def once(self) -> list[SegmentChanged]:
        """The changes as a consumer sees them that drops repeated ids."""
        seen: dict[str, SegmentChanged] = {}
        for change in self.changes:
            seen.setdefault(change["change_id"], change)
        return list(seen.values())

    def letters_once(self) -> list[DeadLetter]:
        """The dead letters, each once."""
        seen: dict[tuple[str, int, int], DeadLetter] = {}
        for letter in self.dead_letters:
            seen.setdefault((letter["topic"], letter["partition"], letter["offset"]), letter)
        return list(seen.values())


class FakeKafka:
    """The topics that are read, and what the group has committed. ``now`` is the broker's clock in seconds."""

    def __init__(self, partitions: int = 1, committed: int | None = 0) -> None:
        self.partitions = partitions
        tps = [SAMPLES, *(TP(role, number) for role in ROLES for number in range(partitions))]
        self.logs: dict[TP, list[Rec]] = {tp: [] for tp in tps}
        self.first: dict[TP, int] = dict.fromkeys(tps, 0)
        self.committed: dict[TP, int] = {} if committed is None else dict.fromkeys(tps, committed)
        self.told_until: dict[TP, int] = {}
        self.now = 0.0

    def append(self, role: Role, made: Rec, partition: int = 0) -> None:
        """Produce one record."""
        log = self.logs[TP(role, partition)]
        log.append(made._replace(offset=len(log)))

    def draw(self, *values: bytes | None) -> None:
        """Produce samples."""
        log = self.logs[SAMPLES]
        log += [Rec(value, offset=offset) for offset, value in enumerate(values, start=len(log))]

    def produce(self, events: Iterable[Event], timestamps: Iterable[int] | None = None) -> None:
        """Produce events where producers put them, stamped with these instants, else with their ``occurred_at``."""
        stamps = iter(timestamps) if timestamps is not None else None
        for event in events:
            stamp = parse(event["occurred_at"]) if stamps is None else next(stamps)
            made = record(event, timestamp=stamp // 1000)
            role = ROLE_OF_KIND[event["kind"]]
            for number in range(self.partitions) if made.key is None else [partition_of(made.key, self.partitions)]:
                self.append(role, made, number)

    def log_range(self, tp: TP) -> LogRange:
        """What is known of one partition."""
        told_until = self.told_until.get(tp, NEVER)
        return LogRange(self.first[tp], len(self.logs[tp]), self.committed.get(tp), told_until)


class FakeConsumer:
    """Fetches from FakeKafka as the batching consumer does; see Consumer in streams/shards.py."""

    def __init__(self, kafka: FakeKafka, fetch: int = 3) -> None:
        self.kafka = kafka
        self.fetch = fetch
        self.assignment: set[TP] = set()
        self.read_from: dict[TP, tuple[int, int]] = {}
        self.paused: set[TP] = set()
        self.errors: deque[Exception | None] = deque()
        #: Topics of which the consumer does not know how far they go.
        self.unknown: set[str] = set()
        self._epoch = 0

    def epoch(self, tp: TP) -> int:
        return self.read_from.get(tp, (0, 0))[0]

    def delivered(self, tp: TP) -> int:
        return self.read_from.get(tp, (0, 0))[1]

    def progress(self, tp: TP) -> Progress | None:
        if tp not in self.read_from or tp.topic in self.unknown:
            return None
        return Progress(self.delivered(tp), len(self.kafka.logs[tp]), self.kafka.now)

    def on_buffer_full(self, tp: TP) -> None:
        self.paused.add(tp)

    def on_buffer_drop(self, tp: TP) -> None:
        self.paused.discard(tp)

    async def seek_to(self, offsets: Mapping[TP, int]) -> None:
        self._epoch += 1
        for tp, offset in offsets.items():
            self.read_from[tp] = (self._epoch, offset)

    async def log_ranges(self, tps: set[TP]) -> Mapping[TP, LogRange]:
        error = self.errors.popleft() if self.errors else None
        if error is not None:
            raise error
        return {tp: self.kafka.log_range(tp) for tp in tps}

    def fetched(self) -> list[FetchedRecords]:
        """One fetch of every partition that has something to read and is not paused."""
        found = []
        for tp in sorted(self.read_from):
            epoch, start = self.read_from[tp]
            records = self.kafka.logs[tp][start : start + self.fetch]
            if records and tp not in self.paused and tp in self.assignment:
                end = start + len(records)
                self.read_from[tp] = (epoch, end)
                found.append(FetchedRecords(tp, start, end, records, epoch))
        return found


class FakeWorker:
    """One worker: Shards on the fakes, driven by hand."""

    def __init__(
        self,
        kafka: FakeKafka,
        store: FaultyStore,
        publisher: FakePublisher,
        *,
        clock: Clock = Clock.INGESTION,
        policy: Policy | None = None,
        fetch: int = 3,
        **settings: Any,
    ) -> None:
        self.kafka, self.store, self.publisher, self.clock = kafka, store, publisher, clock
        publisher.kafka = kafka
        self.policy = policy or make_policy()
        self.activations = Activations(store, self.policy)
        self.shards = Shards(self.activations, store, publisher, quick(**{"clock": clock, **settings}))
        self.consumer = FakeConsumer(kafka, fetch)
        self.shards.attach(self.consumer, kafka.partitions)

    async def assign(self, *numbers: int) -> Mapping[TP, int]:
        """Kafka gives the worker exactly these shards, and with the first the samples."""
        tps = {TP(role, number) for role in ROLES for number in numbers} | ({SAMPLES} if 0 in numbers else set())
        offsets = await self.shards.assigned({tp: self.kafka.log_range(tp) for tp in tps})
        self.consumer.assignment = tps
        self.consumer.read_from = {tp: at for tp, at in self.consumer.read_from.items() if tp in tps}
        self.consumer.paused.clear()
        await self.consumer.seek_to(offsets)
        return offsets

    def turn(self) -> None:
        """One turn of the loop that Faust runs: fetch, watch, commit."""
        for batch in self.consumer.fetched():
            self.shards.fetched(batch)
        self.shards.watch(joined=True)
        for tp, offset in self.shards.published().items():
            # As the batching consumer does, a commit never goes back.
            self.kafka.committed[tp] = max(offset, self.kafka.committed.get(tp, 0))
            told_until = self.shards.published_time(tp.partition)
            self.kafka.told_until[tp] = max(told_until, self.kafka.told_until.get(tp, NEVER))

    def at_rest(self) -> bool:
        """Whether everything is folded, published and learned, as the store and Kafka see it."""
        learned = len(self.kafka.logs[SAMPLES])
        if SAMPLES in self.consumer.assignment and learned and self.kafka.committed.get(SAMPLES, 0) < learned:
            return False
        for number, runner in self.shards.owned.items():
            header = self.store.peek(number)
            ends = {role: len(self.kafka.logs[TP(role, number)]) for role in ROLES}
            done = all(self.kafka.committed.get(TP(role, number), 0) >= end for role, end in ends.items())
            if header.offsets != ends or not done or header.owner != runner.processor.token:
                return False
            if not {entry.id for entry in header.entries} <= self.publisher.done:
                return False
            # The runner's own table may just be loaded again.
            if self.clock is Clock.INGESTION and self._anybody_due(number):
                return False
            if self.clock is Clock.INGESTION and runner.processor.stop_at <= round(self.kafka.now * SECOND):
                return False
            if header.commits and header.activation != runner.processor.activation:
                return False
        return True

    def _anybody_due(self, number: int) -> bool:
        processor = processor_on(self.store.copy(), self.policy, self.clock, number, self.kafka.partitions)
        processor.load({}, {})
        return processor.lapse_lag(round(self.kafka.now * SECOND)) > 0

    async def kill(self) -> None:
        """The process is gone, in the middle of whatever it was doing."""
        await kill_everything()
        for runner in self.shards.owned.values():
            # Somebody must have asked what they ended with.
            runner.failed(), runner.outbox.failed()

    async def catch_up(self) -> None:
        """Work until there is nothing left to do."""
        await eventually(self.at_rest, self.turn)


def topics() -> dict[Role, str]:
    """The input topics by role, with the names of the defaults."""
    return {role: role for role in ROLES}


def processor_on(
    store: MemoryStore,
    policy: Policy | None = None,
    clock: Clock = Clock.EVENT,
    number: int = 0,
    partitions: int = 1,
) -> BatchProcessor:
    """A processor of one shard that has not been loaded."""
    activations = Activations(store, policy or make_policy())
    return BatchProcessor(Shard(number, partitions, topics()), activations, store, clock)


def numbered(policy: Policy, version: int) -> Policy:
    """The same policy under another version, as whoever changes a policy gives it one."""
    return parse_policy(policy.text.replace(f"version = {policy.version}", f"version = {version}", 1))


def switch(feeder: Feeder, policy: Policy, instant: int = 0, *, backfill: bool = True) -> list[SegmentChanged]:
    """Activate a policy under a version of its own and load the shard under it, as a worker does.

    Returns the changes of what that has moved.
    """
    activations = feeder.processor.activations
    active = activations.policy(activations.active.policy_version)
    activations.apply(numbered(policy, active.version + 1), instant, backfill)
    step = feeder.processor.follow()
    assert step is not None
    assert step.reload
    feeder.processor.commit(step)
    feeder.load(policy)
    return feeder.advance(feeder.processor.time)
