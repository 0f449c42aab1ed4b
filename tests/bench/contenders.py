"""Who is measured: the segmenter, the systems that people would use instead, and the same work without Faust.

Each is a process that reads the purchases and publishes changes of the lifecycle.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import urllib.request
from abc import ABC, abstractmethod
from importlib import resources
from pathlib import Path
from typing import ClassVar, Final

from streams.embedded.server import LOOPBACK, free_ports
from streams.settings import Settings
from streams.store.keys import shard_keys
from streams.store.redis import RedisStore
from tests.bench.consume import COUNTER
from tests.bench.policies import cutoffs_of_workload
from tests.bench.servers import Servers
from tests.bench.workload import PARTITIONS, Workload
from tests.support.real_kafka import KafkaUnavailable

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]


class Contender(ABC):
    """A process under test; ``skips`` says what of the segmenter's work it does not do."""

    name: ClassVar[str]
    skips: ClassVar[str] = ""
    #: Whether it makes topics for its state, which the embedded broker cannot.
    makes_topics: ClassVar[bool] = False
    #: Whether it publishes the lifecycle's changes and nothing else.
    exact: ClassVar[bool] = True

    def __init__(self, servers: Servers) -> None:
        self.servers = servers

    @abstractmethod
    def command(self) -> list[str]:
        """The command that starts it."""

    def prepare(self, workload: Workload) -> None:  # noqa: B027
        """What must be there before it starts."""

    def shares(self, workers: int) -> bool:
        """Whether it has its share of the partitions, beside others of its kind."""
        raise NotImplementedError

    def finished(self, events: int, changes: int) -> bool:
        """Whether so many events have been handled, which make so many changes."""
        return sum(self.servers.ends()) >= changes

    def mean_batch(self) -> float:
        """Records a commit, as far as it batches and says so."""
        return 0.0


class SegmenterWorker(Contender):
    """``segmenter worker`` with every setting at its default but for the addresses and the policy: the lifecycle."""

    name = "segmenter"
    policy: ClassVar[str] = "lifecycle"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        (self.port,) = free_ports(1)
        #: Its settings that are not at their default.
        self.given = {
            "broker": servers.broker,
            "redis": servers.redis_url,
            "http-port": str(self.port),
            "policy": str(resources.files("models").joinpath(f"policies/{self.policy}.toml")),
        }
        self._keys = [shard_keys(Settings().namespace, shard) for shard in range(PARTITIONS)]

    def command(self) -> list[str]:
        given = (part for name, value in self.given.items() for part in (f"--{name}", value))
        return [sys.executable, "-m", "streams.cli", "worker", *given]

    def shares(self, workers: int) -> bool:
        return self.counted("segmenter_shards") == PARTITIONS // workers

    def finished(self, events: int, changes: int) -> bool:
        """Redis holds the state and the offset of every event, and the broker has acknowledged every change."""
        with self.servers.redis.pipeline(transaction=False) as pipe:
            for keys in self._keys:
                pipe.hget(keys.shard, "offset:purchases")
                pipe.hlen(keys.outbox)
            answers = pipe.execute()
        done = sum(int(offset or 0) for offset in answers[::2]) == events and not any(answers[1::2])
        return done and (not self.exact or super().finished(events, changes))

    def mean_batch(self) -> float:
        return self.counted("segmenter_batch_records_sum") / max(1.0, self.counted("segmenter_batch_records_count"))

    def counted(self, name: str) -> float:
        """The sum of a metric over its labels."""
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return 0.0
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.M))


class DefaultPolicyWorker(SegmenterWorker):
    """The same with all dimensions of the default policy, clusters among them, and its cut-offs in force already."""

    name = "segmenter, default policy"
    policy = "default"
    exact = False

    def prepare(self, workload: Workload) -> None:
        store = RedisStore(self.servers.redis_url, Settings().namespace)
        cutoffs_of_workload(workload).activate(store)
        store.close()


def _module(name: str, servers: Servers) -> list[str]:
    """The command that runs a module of this package."""
    python = ["/usr/bin/env", f"PYTHONPATH={ROOT}", sys.executable]
    return [*python, "-m", f"tests.bench.{name}", servers.broker, servers.redis_url]


class _Peer(Contender):
    """A program of ``peers/``: BROKER REDIS_URL GROUP STATE_FOLDER."""

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self._folder = tempfile.TemporaryDirectory(prefix="segmenter-bench-")

    @property
    def arguments(self) -> list[str]:
        """What every peer is told."""
        return [self.servers.broker, self.servers.redis_url, "bench", self._folder.name]


class _PythonPeer(_Peer):
    """A Python program in an environment of its own: peers ask for versions that are not ours."""

    script: ClassVar[str]

    def command(self) -> list[str]:
        return [str(peers_python()), str(HERE / "peers" / self.script), *self.arguments]


def peers_python() -> Path:
    """The interpreter of the peers' environment, which ``make bench`` makes."""
    return Path(os.environ.get("SEGMENTER_BENCH_PYTHON") or ROOT / ".venv-peers" / "bin" / "python")


class NaiveAgent(_PythonPeer):
    """What a Faust tutorial shows, with Redis."""

    name = "Faust agent with Redis, naive"
    script = "naive_agent.py"
    skips = "validation, dedupe, outbox, commit of state and offset together, lapses without an event"


class FaustTable(_PythonPeer):
    """Faust with its own state."""

    name = "Faust agent with a Table"
    makes_topics = True
    script = "faust_table.py"
    skips = NaiveAgent.skips


class AiokafkaRedis(_PythonPeer):
    """No framework: aiokafka, and Redis in pipelines."""

    name = "aiokafka with Redis pipelines"
    script = "aiokafka_redis.py"
    skips = NaiveAgent.skips


class Quix(_PythonPeer):
    """Quix Streams with RocksDB."""

    name = "Quix Streams (RocksDB)"
    makes_topics = True
    script = "quix.py"
    skips = "validation, dedupe, lapses without an event"


class Bytewax(_PythonPeer):
    """Bytewax with its recovery store."""

    name = "Bytewax"
    script = "bytewax_flow.py"
    skips = "validation, dedupe, lapses without an event"


class KafkaStreams(_Peer):
    """Kafka Streams with RocksDB."""

    name = "Kafka Streams (RocksDB)"
    makes_topics = True
    store: ClassVar[str] = "rocksdb"
    skips = "validation, dedupe, lapses without an event"

    def command(self) -> list[str]:
        from tests.bench.peers import kafka_streams

        return kafka_streams.command(*self.arguments, self.store)


class KafkaStreamsInMemory(KafkaStreams):
    """Kafka Streams with its state in memory."""

    name = "Kafka Streams (in memory)"
    store = "memory"


class WithoutFaust(SegmenterWorker):
    """The segmenter's own read, fold, commit and publish behind a bare aiokafka consumer: what Faust costs."""

    name = "the same fold and commit without Faust"

    def mean_batch(self) -> float:
        return 0.0

    def command(self) -> list[str]:
        return _module("without_faust", self.servers)


class ConsumeOnly(Contender):
    """Consuming and validating, nothing else: no segmenter can be faster on this consumer."""

    name = "consuming and validating only"
    exact = False

    def command(self) -> list[str]:
        return _module("consume", self.servers)

    def finished(self, events: int, changes: int) -> bool:
        """It counts what it has read."""
        return int(self.servers.redis.get(COUNTER) or 0) >= events


PEERS: Final[tuple[type[Contender], ...]] = (
    NaiveAgent, FaustTable, AiokafkaRedis, Quix, Bytewax, KafkaStreams, KafkaStreamsInMemory,
)  # fmt: skip


def missing(kind: type[Contender], *, embedded: bool) -> str | None:
    """Why a contender cannot be had here, None if it can."""
    if embedded and kind.makes_topics:
        return "the embedded broker makes no topics for its state"
    if issubclass(kind, _PythonPeer) and not peers_python().exists():
        return "the peers' environment is not there; run: make bench"
    if issubclass(kind, KafkaStreams):
        from tests.bench.peers import kafka_streams

        try:
            kafka_streams.jars()
        except KafkaUnavailable as error:
            return str(error)
    return None
