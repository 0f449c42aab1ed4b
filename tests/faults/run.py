"""One run: a fleet of its own, load, a fault, and the oracle afterwards; and the registry of all faults.

Runs happen in lanes, each a thread; see servers.py for whose servers they have.
"""

import itertools
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from streams.errors import ServiceUnavailable
from streams.kafka.topics import create
from tests.faults.load import PARTITIONS, Load, Production, usual
from tests.faults.oracle import judge, settings_of
from tests.faults.servers import KAFKA as KAFKA
from tests.faults.servers import PLAIN, SERVERS, Lane, Servers
from tests.faults.servers import Shared as Shared
from tests.faults.servers import servers as servers
from tests.support.commands import Worker, eventually
from tests.support.fleet import fleet
from tests.support.real_kafka import KafkaUnavailable
from tests.support.stored import Stored
from tests.support.topics import Topics

SETTINGS = {
    "SEGMENTER_CLOCK": "event",
    "SEGMENTER_SESSION_TIMEOUT": "3",
    "SEGMENTER_BATCH_SIZE": "100",
}
SETTLED_WITHIN = 120.0
PRODUCED_WITHIN = 120.0
STOP_SECONDS = 10.0
ATTEMPTS = 5
#: What is being produced when a fault strikes counts for the time to recover, not only what was before.
_PROBE_SECONDS = 0.25


class Again(Exception):
    """The fault did not come about; the run does not count and is repeated with other random numbers."""


@dataclass(frozen=True)
class Outcome:
    """What a strike itself found to be right, in one sentence, in place of the oracle."""

    said: str


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    ``strike`` is called in the run's thread once the workers are ready and load is being produced; it returns when
    the fault is over, or raises AssertionError. ``servers`` names whose Kafka and Redis the run has (SERVERS),
    ``settings`` are more settings of the workers, ``rate`` is records a second. A ``selected`` fault is part of
    ``make test``, where ``short`` replaces fields. ``runs`` is how many there are in the full series.
    """

    name: str
    group: str
    strike: Callable[["Run"], Outcome | None]
    servers: str = "shared"
    settings: Mapping[str, str] = field(default_factory=dict)
    workers: int = 2
    selected: bool = False
    rate: float = 1500
    load: Callable[[random.Random], Load] = usual
    runs: int = 5
    short: Mapping[str, Any] = field(default_factory=dict)


FAULTS: dict[str, Fault] = {}
_Strike = Callable[["Run"], Outcome | None]


def fault(name: str, group: str, **more: Any) -> Callable[[_Strike], _Strike]:
    """Register the decorated function as a fault's strike; ``more`` are fields of Fault."""

    def register(strike: _Strike) -> _Strike:
        assert name not in FAULTS, f"two faults are called {name}"
        FAULTS[name] = Fault(name, group, strike, **{"runs": 20 if group == "worker" else 5, **more})
        return strike

    return register


@dataclass(frozen=True)
class Result:
    """What became of a run; a line of the results file. ``recovered`` is None if there was nothing to recover."""

    fault: str
    group: str
    seed: int
    events: int
    good: bool
    lost: int = 0
    doubled: int = 0
    repeats: int = 0
    recovered: float | None = None
    seconds: float = 0.0
    stopped: float = 0.0
    restarts: int = 0
    attempts: int = 1
    said: str = ""
    at: str = ""
    #: Why the run was not done: this machine has not what the fault needs. It is neither good nor bad then.
    skipped: str = ""

    def line(self) -> dict[str, Any]:
        """As JSON is made of it."""
        return asdict(self)


_numbers = itertools.count(1)


class Run:
    """What a strike sees; see the fields, and ``until_produced``, ``hold``, ``release`` and ``mark``."""

    def __init__(self, fault: Fault, seed: int, attempt: int, servers: Servers, folder: Path) -> None:
        self.fault = fault
        self.seed = seed
        self.rng = random.Random(f"{fault.name}:{seed}:{attempt}")
        self.servers = servers
        self.kafka = servers.kafka
        self.redis = servers.redis
        self.folder = folder
        self.load = fault.load(self.rng)
        self.expected = self.load.expected
        name = f"{re.sub('[^a-z0-9]+', '-', fault.name.lower())}-{seed}-{next(_numbers)}"
        self.settings = {
            **SETTINGS,
            "SEGMENTER_BROKER": servers.kafka.address,
            "SEGMENTER_REDIS": servers.redis.url,
            "SEGMENTER_POLICY": str(self.load.policy),
            **servers.settings,
            **fleet(name),
            **fault.settings,
        }
        #: How many each input topic has; a strike that adds some says so.
        self.partitions = PARTITIONS
        self.topics = Topics(servers.kafka.address, PARTITIONS, prefix=f"{name}.")
        self.state = Stored(servers.client(), name, PARTITIONS)
        self.workers: list[Worker] = []
        #: Whether workers that end by themselves are started again.
        self.supervised = True
        self.restarts = 0
        self.recovered: float | None = None
        self.stopped = 0.0
        self.production = Production(servers.kafka.address, f"{name}.", self.load.records, fault.rate)
        self._wanted: dict[str, Worker] = {}
        self._on_end: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._recovery: threading.Thread | None = None

    # workers

    def start_worker(self, name: str = "", ready: bool = True, supervised: bool = True, **settings: str) -> Worker:
        """Start one more worker, with more settings (``SEGMENTER_…``) than the others; wait until it has its share.

        Nobody starts it again unless it is supervised.
        """
        worker = Worker(self.folder, {**self.settings, **settings}, name or f"worker-{len(self.workers) + 1}").start()
        with self._lock:
            self.workers.append(worker)
            if supervised:
                self._wanted[str(id(worker))] = worker
        return worker.ready() if ready else worker

    def kill(self, worker: Worker) -> None:
        """SIGKILL; nobody starts it again but ``restart``."""
        self.dismiss(worker)
        worker.kill()

    def dismiss(self, worker: Worker) -> None:
        """Do not start it again when it ends."""
        with self._lock:
            self._wanted.pop(str(id(worker)), None)

    def restart(self, worker: Worker, ready: bool = True) -> Worker:
        """Start a worker that has ended, again."""
        with self._lock:
            worker.start()
            self._wanted[str(id(worker))] = worker
        return worker.ready() if ready else worker

    def terminate(self, worker: Worker) -> float:
        """SIGTERM; how long it took to end, which must be within ten seconds and with exit code 0."""
        self.dismiss(worker)
        code, seconds = worker.terminate(within=STOP_SECONDS + 5)
        # Before Python has come to the worker's own signal handlers, a signal just ends it: it has done nothing.
        unborn = code == -signal.SIGTERM and not worker.address
        assert code == 0 or unborn, f"exit code {code} {seconds:.1f} s after SIGTERM:\n{worker.log[-2000:]}"
        assert seconds < STOP_SECONDS, f"it took {seconds:.1f} s to stop:\n{worker.log[-2000:]}"
        self.stopped = max(self.stopped, seconds)
        return seconds

    def _supervise(self) -> None:
        while not self._over.wait(0.2):
            with self._lock:
                ended = [worker for worker in self._wanted.values() if self.supervised and not worker.process.running]
                for worker in ended:
                    self.restarts += 1
                    worker.start()

    def on_end(self, do: Callable[[], object]) -> None:
        """Have something done when the run ends, however it does, before its servers are stopped."""
        self._on_end.append(do)

    # load

    def progress(self) -> float:
        """Share of the load that has been produced, 0 to 1."""
        return self.production.progress

    def until_produced(self, share: float, within: float = PRODUCED_WITHIN) -> None:
        """Wait until that share of the load has been produced."""
        eventually(lambda: self.progress() >= share or self.production.over, within, f"{share:.0%} produced")

    def hold(self) -> None:
        """Stop producing for now."""
        self.production.hold()

    def release(self) -> None:
        """Go on producing."""
        self.production.release()

    def settled(self) -> bool:
        """Everything produced so far is in the state, and everything to say has been said."""
        everything = self._reached(dict(self.production.sent)) is not None and not self.state.overdue()
        return everything and self.state.unpublished() == 0

    # recovery

    def mark(self) -> None:
        """The fault begins now: how long until what is being produced at this moment is folded and published?"""
        if self._recovery is None:
            began = time.monotonic()
            self._recovery = threading.Thread(target=self._recover, args=(began,), name="recovery", daemon=True)
            self._recovery.start()

    def _recover(self, began: float) -> None:
        time.sleep(_PROBE_SECONDS)
        wanted = dict(self.production.sent)
        commits: dict[int, int] | None = None
        while not self._over.is_set():
            try:
                commits = self._reached(wanted) if commits is None else commits
                if commits is not None and self.state.published_to(commits):
                    self.recovered = max(0.0, time.monotonic() - began - _PROBE_SECONDS)
                    return
            except (redis.RedisError, OSError):
                commits = None
            self._over.wait(0.05)

    def _reached(self, wanted: Mapping[tuple[str, int], int]) -> dict[int, int] | None:
        """Each shard's number of commits, once its offsets have come that far; None before."""
        commits: dict[int, int] = {}
        for shard in range(self.partitions):
            offsets, commits[shard] = self.state.offsets(shard), self.state.commits(shard)
            if any(p == shard and offsets.get(topic, 0) < end for (topic, p), end in wanted.items()):
                return None
        return commits

    # the whole

    def go(self) -> Result:
        """Do everything. Raises Again if the fault did not come about; any other failure is in the result."""
        began, at = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        found: dict[str, Any] = {}
        try:
            with self.topics:
                found = self._go()
        except Again:
            raise
        except Exception as error:
            found = {"good": False, "said": f"{type(error).__name__}: {error}"}
        return Result(
            fault=self.fault.name,
            group=self.fault.group,
            seed=self.seed,
            events=sum(self.production.sent.values()),
            recovered=None if self.recovered is None else round(self.recovered, 2),
            seconds=round(time.monotonic() - began, 1),
            stopped=round(self.stopped, 2),
            restarts=self.restarts,
            at=at,
            **found,
        )

    def _go(self) -> dict[str, Any]:
        create(settings_of(self.settings), PARTITIONS, self.servers.replication)
        supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        try:
            starting = [self.start_worker(ready=False) for _ in range(self.fault.workers)]
            for worker in starting:
                worker.ready()
            supervisor.start()
            self.production.start()
            outcome = self.fault.strike(self)
            if outcome is not None:
                return {"good": True, "said": outcome.said}
            self.production.finish(PRODUCED_WITHIN)
            eventually(lambda: self.state.settled(self.topics), SETTLED_WITHIN, "everything folded and published")
            self._stop_workers()
            verdict = judge(self.expected, self.settings, self.topics, self.state, self.partitions)
            figures = {name: getattr(verdict, name) for name in ("lost", "doubled", "repeats")}
            return {"good": verdict.good, "said": "\n".join(verdict.faults), **figures}
        finally:
            self._over.set()
            for do in self._on_end:
                do()
            self.production.stop()
            for worker in self.workers:
                worker.__exit__(None, None, None)
            for thread in (supervisor, self._recovery):
                if thread is not None and thread.ident is not None:
                    thread.join(5)
            self.state.client.close()

    def _stop_workers(self) -> None:
        """SIGTERM for all that still run: exit code 0 within ten seconds, and nowhere a traceback."""
        running = [worker for worker in self.workers if str(id(worker)) in self._wanted]
        with self._lock:
            self._wanted.clear()
        stopping = [threading.Thread(target=self._note, args=(worker,)) for worker in running]
        self._refusals: list[str] = []
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        assert not self._refusals, self._refusals[0]
        for worker in self.workers:
            assert "Traceback" not in worker.log, worker.log[worker.log.index("Traceback") - 500 :][:4000]

    def _note(self, worker: Worker) -> None:
        try:
            self.terminate(worker)
        except AssertionError as error:
            self._refusals.append(str(error))


def perform(fault: Fault, seed: int, lane: Lane, folder: Path) -> Result:
    """One run that counts. Its folder is removed if it went well; Kafka of a run that did not is not used again.

    Raises KafkaUnavailable or ServiceUnavailable if the machine has no servers; if it only lacks what this fault needs
    besides them, the result says so.
    """
    said = ""
    for attempt in range(ATTEMPTS):
        own = folder / f"{re.sub('[^a-z0-9]+', '-', fault.name.lower())}-{seed}-{attempt}"
        own.mkdir(parents=True, exist_ok=True)
        try:
            with SERVERS[fault.servers](lane) as given:
                result = Run(fault, seed, attempt, given, own).go()
        except Again as again:
            said = str(again)
            shutil.rmtree(own)
            continue
        except (KafkaUnavailable, ServiceUnavailable) as unavailable:
            shutil.rmtree(own)
            if fault.servers in PLAIN:
                raise
            return Result(fault.name, fault.group, seed, 0, True, skipped=str(unavailable))
        except Exception as error:  # a server that did not start ends its run, and not the series
            result = Result(fault.name, fault.group, seed, 0, False, said=f"{type(error).__name__}: {error}")
        if result.good:
            shutil.rmtree(own)
        elif fault.servers not in ("shared", "redis"):
            lane.discard()
        return Result(**{**result.line(), "attempts": attempt + 1})
    return Result(fault.name, fault.group, seed, 0, False, attempts=ATTEMPTS, said=f"it never came about: {said}")
