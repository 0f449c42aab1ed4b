"""Events per second of one worker and of the naive agent: each alone, on its own fresh broker and Redis.

The process under test is started on a few events that warm it up, joins its group and handles them. Then it is
halted (SIGSTOP), every event to be measured is produced, and it is let go (SIGCONT): the clock runs from there, with
everything to do lying on the broker, until all of it is done. Start-up, group join and producing are outside.

Done means, for the worker, that Redis holds the state and the offset of every event and that the broker has
acknowledged every change; for the naive agent only that it has written the state of every event to Redis.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import orjson
import redis
from confluent_kafka import Consumer, TopicPartition

from streams.embedded.broker import PARTITIONS
from streams.embedded.server import LOOPBACK, OwnedProcess, free_ports
from streams.embedded.stack import EmbeddedStack
from streams.settings import Settings
from streams.store.keys import clusters_key, shard_keys
from streams.store.redis import RedisStore
from tests.bench.events import PARTITION_LIMIT, RECORD_BATCH, RECORD_OVERHEAD, Events, Produced, produce
from tests.bench.policies import compared, week_of_draws

_READY_WITHIN: Final = 60.0
_DONE_WITHIN: Final = 600.0
#: Idle time after the warm-up, so that its last commit and acknowledgement are over.
_SETTLE: Final = 1.0
_POLL: Final = 0.005


class BenchError(RuntimeError):
    """The run cannot be used: something was lost, doubled, different or too late."""


class Contender(ABC):
    """A process under test. It reads ``purchases`` and publishes to ``segment-changes``."""

    name: ClassVar[str]

    def __init__(self, stack: EmbeddedStack, client: redis.Redis) -> None:
        self.stack = stack
        self.client = client

    @abstractmethod
    def command(self) -> list[str]:
        """The command that starts it."""

    @abstractmethod
    def processed(self) -> int:
        """How many events are done, asked of Redis."""

    def mean_batch(self) -> float:
        """Records a commit, as far as it batches."""
        return 1.0

    def prepare(self, events: Events) -> None:  # noqa: B027
        """What must be there before it starts."""

    def warm(self, events: Events) -> bool:
        """Whether it has warmed up otherwise, too."""
        return True

    def also(self, events: Events) -> None:  # noqa: B027
        """What else it is given to do while it is measured."""

    def also_done(self) -> bool:
        """Whether that is done."""
        return True

    def changes(self) -> int | None:
        """How many changes it has made, if it makes others than those that are known beforehand."""
        return None


class SegmenterWorker(Contender):
    """``segmenter worker`` with every setting at its default but for the addresses and the policy: the lifecycle."""

    name = "segmenter worker"
    policy: ClassVar[str] = "lifecycle"

    def __init__(self, stack: EmbeddedStack, client: redis.Redis) -> None:
        super().__init__(stack, client)
        (self._port,) = free_ports(1)
        self._policy = str(resources.files("models").joinpath(f"policies/{self.policy}.toml"))
        self._keys = [shard_keys(Settings().namespace, shard) for shard in range(PARTITIONS)]

    def command(self) -> list[str]:
        given = {
            "--broker": self.stack.broker.address,
            "--redis": self.stack.redis.url,
            "--http-port": str(self._port),
            "--policy": self._policy,
        }
        return [sys.executable, "-m", "streams.cli", "worker", *(part for pair in given.items() for part in pair)]

    def processed(self) -> int:
        """Events committed; while a change has not been acknowledged by the broker, one less."""
        with self.client.pipeline(transaction=False) as pipe:
            for keys in self._keys:
                pipe.hget(keys.shard, "offset:purchases")
                pipe.hlen(keys.outbox)
            answers = pipe.execute()
        return sum(int(offset or 0) for offset in answers[::2]) - any(answers[1::2])

    def mean_batch(self) -> float:
        return self._counted("segmenter_batch_records_sum") / self._counted("segmenter_batch_records_count")

    def _counted(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self._port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.M))


class DefaultPolicyWorker(SegmenterWorker):
    """The same with all dimensions of the default policy, and its cut-offs in force from the start."""

    name = "segmenter worker, default policy"
    policy = "default"

    def prepare(self, events: Events) -> None:
        store = RedisStore(self.stack.redis.url, Settings().namespace)
        _, default = compared(events.history())
        default.activate(store)
        store.close()

    def warm(self, events: Events) -> bool:
        """Whether the empty draws with which its shards begin have been read, which imports River."""
        return self._learned() >= PARTITIONS

    def _learned(self) -> int:
        """Draws read, asked of Redis."""
        return int(cast(bytes | None, self.client.hget(clusters_key(Settings().namespace), "offset")) or 0)

    def changes(self) -> int | None:
        return int(self._counted("segmenter_changes_total"))


class LearningWorker(DefaultPolicyWorker):
    """The same while it learns what customers drawn at a week's end say, as it does once a week."""

    name = "segmenter worker, default policy, learning"
    _seeded = False

    def warm(self, events: Events) -> bool:
        """The first draw seeds the centres, which is done once in a lifetime."""
        if super().warm(events) and not self._seeded:
            self._seeded = True
            self._draw(events, weeks=1)
        return self._learned() >= 2 * PARTITIONS

    def also(self, events: Events) -> None:
        self._draw(events, weeks=2)

    def also_done(self) -> bool:
        return self._learned() >= 3 * PARTITIONS

    def _draw(self, events: Events, weeks: int) -> None:
        draws = week_of_draws(events.history(), PARTITIONS, weeks)
        records = [Produced(draw.dimension.encode(), draw.encode(), 0) for draw in draws]
        produce(self.stack.broker.address, Settings().samples_topic, records)


class NaiveAgent(Contender):
    """The Faust agent of ``naive_agent.py``."""

    name = "naive Faust agent"

    def command(self) -> list[str]:
        script = Path(__file__).parent / "peers" / "naive_agent.py"
        return [sys.executable, str(script), self.stack.broker.address, self.stack.redis.url]

    def processed(self) -> int:
        """Redis counts the SETs itself: one for each event."""
        stats: Any = self.client.info("commandstats")
        return int(stats.get("cmdstat_set", {}).get("calls", 0))


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's run. ``cpu_seconds`` is its process's own, None where the machine does not tell."""

    name: str
    events: int
    seconds: float
    cpu_seconds: float | None
    changes: int
    repeated: int
    output_bytes: int
    mean_batch: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


def measure(kind: type[Contender], events: Events, record_batch: int = RECORD_BATCH) -> Run:
    """Run one contender over the events, in such record batches. Raises BenchError if what comes out is wrong."""
    with ExitStack() as running:
        stack = running.enter_context(EmbeddedStack(Settings()))
        client = running.enter_context(redis.Redis.from_url(stack.redis.url))
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="segmenter-bench-")))
        contender = kind(stack, client)
        contender.prepare(events)
        produce(stack.broker.address, "purchases", events.warm_up)
        log = folder / "process.log"
        process = running.enter_context(OwnedProcess(contender.command(), log))

        def wait_for(done: Callable[[], bool], within: float, what: str) -> None:
            deadline = time.perf_counter() + within
            while not done():
                if time.perf_counter() > deadline or not process.running:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise BenchError(f"{kind.name}: {what} did not happen within {within:.0f} s\n{tail}")
                time.sleep(_POLL)

        wait_for(lambda: contender.processed() == len(events.warm_up), _READY_WITHIN, "the warm-up")
        wait_for(lambda: contender.warm(events), _READY_WITHIN, "the warm-up")
        time.sleep(_SETTLE)
        os.kill(process.pid, signal.SIGSTOP)
        contender.also(events)
        produce(stack.broker.address, "purchases", events.measured, record_batch)
        cpu = _cpu_seconds(process.pid)
        began = time.perf_counter()
        os.kill(process.pid, signal.SIGCONT)
        wait_for(lambda: contender.processed() == events.total, _DONE_WITHIN, "the last event")
        wait_for(contender.also_done, _READY_WITHIN, "all else")
        seconds = time.perf_counter() - began
        used = _cpu_seconds(process.pid)
        cpu_seconds = None if cpu is None or used is None else used - cpu
        made = contender.changes()
        if made is not None:
            # More than the embedded broker keeps, so they cannot be read back.
            return Run(kind.name, len(events.measured), seconds, cpu_seconds, made, 0, 0, contender.mean_batch())
        expected = len(events.moves)
        wait_for(lambda: sum(_ends(stack, "segment-changes")) >= expected, 30, "the last change")
        published = _published(stack)
        _check(kind.name, events, published, stack)
        return Run(
            kind.name,
            len(events.measured),
            seconds,
            cpu_seconds,
            len(set(published.moves)),
            len(published.moves) - len(set(published.moves)),
            published.largest_partition,
            contender.mean_batch(),
        )


def _cpu_seconds(pid: int) -> float | None:
    """User and system time of a process, from Linux's /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Published:
    moves: list[tuple[str, str | None, str | None, str]]
    largest_partition: int


def _consumer(stack: EmbeddedStack) -> Consumer:
    return Consumer({"bootstrap.servers": stack.broker.address, "group.id": "bench", "log_level": 0})


def _watermarks(stack: EmbeddedStack, topic: str) -> list[tuple[int, int]]:
    consumer = _consumer(stack)
    try:
        return [consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10) for p in range(PARTITIONS)]
    finally:
        consumer.close()


def _ends(stack: EmbeddedStack, topic: str) -> list[int]:
    return [end for _, end in _watermarks(stack, topic)]


def _published(stack: EmbeddedStack) -> _Published:
    """Every change on the topic, with repeats."""
    ends = _ends(stack, "segment-changes")
    sizes = [0] * PARTITIONS
    moves: list[tuple[str, str | None, str | None, str]] = []
    consumer = _consumer(stack)
    try:
        consumer.assign([TopicPartition("segment-changes", p, 0) for p in range(PARTITIONS)])
        deadline = time.perf_counter() + 30
        while len(moves) < sum(ends):
            if time.perf_counter() > deadline:
                raise BenchError("the changes could not be read back")
            for message in consumer.consume(1000, timeout=0.1):
                if message.error() is not None:
                    raise BenchError(message.error().str())
                key, value, headers = message.key() or b"", message.value() or b"", message.headers() or []
                change = orjson.loads(value)
                moves.append((change["customer_id"], change["from"], change["to"], change["event_id"]))
                sizes[message.partition()] += (
                    len(key) + len(value) + sum(len(name) + len(text) for name, text in headers) + RECORD_OVERHEAD
                )
    finally:
        consumer.close()
    return _Published(moves, max(sizes))


def _check(name: str, events: Events, published: _Published, stack: EmbeddedStack) -> None:
    if set(published.moves) != events.moves:
        missing, extra = events.moves - set(published.moves), set(published.moves) - events.moves
        raise BenchError(f"{name}: {len(missing)} changes are missing and {len(extra)} should not be there")
    if published.largest_partition > PARTITION_LIMIT:
        raise BenchError(f"{name}: {published.largest_partition} bytes of changes in one partition are too many")
    if sum(_ends(stack, "purchases")) != events.total:
        raise BenchError(f"{name}: the topic does not hold {events.total} events")
    for topic in ("purchases", "segment-changes"):
        if any(first for first, _ in _watermarks(stack, topic)):
            raise BenchError(f"{name}: the embedded broker dropped records of {topic}")
