"""The long run: generated events for a quarter of an hour, a fault every ten seconds, memory watched, one oracle."""

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from streams.failpoints import POINTS
from streams.generator import Population, generate
from tests.faults.load import Load, replayed, sent
from tests.faults.run import SERVERS, Fault, Lane, Run, Shared
from tests.support.commands import Worker
from tests.support.processes import memory

EVERY = 10.0
#: Share of the run after which memory must be flat: by then nearly every customer has come.
_WARM_UP = 0.3
#: A run long enough to say so must have memory that grows by no more than this share in the rest of it.
_FLAT, _FLAT_AFTER = 0.05, 600.0
#: Lag is what faults cause here; what a topic lags must not be what changes depend on.
_SETTINGS = {"SEGMENTER_MERGE_WAIT": "300"}


def events_of(count: int, seed: int) -> list[dict[str, Any]]:
    """So many generated events: customers who nearly all join within the first month of a year, and a last tick."""
    population = Population(
        customers=max(count // 9, 200), seed=seed, start=datetime(2024, 1, 1, tzinfo=UTC), days=365,
        acquisition_days=30, r=1.2, alpha=3.0,
    )  # fmt: skip
    events = list(islice(generate(population), count))
    assert len(events) == count, f"the population had only {len(events)} events"
    return [*events, {"kind": "tick", "occurred_at": events[-1]["occurred_at"]}]


class Memory:
    """Samples one worker each second: second, process id, resident memory in MB, and how many shards it owns."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._over = threading.Event()
        self.samples: list[tuple[float, int, float, float]] = []
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._began = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Sample no more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            pid = self._worker.process.pid
            try:
                resident = memory(pid) / 1e6
            except (OSError, StopIteration):
                continue  # it is not there this second
            shards = re.findall(r"^segmenter_shards (\S+)$", self._worker.get("/metrics")[1], re.M)
            if shards:  # it answers this second
                self.samples.append((time.monotonic() - self._began, pid, resident, float(shards[0])))

    def figures(self) -> dict[str, float]:
        """Least, median and most, and the slope in MB a minute at an equal number of shards, after the warm-up."""
        warm = [sample for sample in self.samples if sample[0] > _WARM_UP * self.samples[-1][0]]
        minutes, _, values, shards = np.array(warm).T
        # Each shard weighs its customers, and how many it owns changes with every fault of another worker.
        causes = np.stack([np.ones(len(warm)), minutes / 60, shards], axis=1)
        slope = np.linalg.lstsq(causes, values, rcond=None)[0][1]
        return {
            "samples": len(warm),
            "incarnations": len({pid for _, pid, *_ in self.samples}),
            "min": round(float(values.min()), 1),
            "median": round(float(np.median(values)), 1),
            "max": round(float(values.max()), 1),
            "slope": round(float(slope), 3),
        }


class Soak:
    """The strike of a soak: a fault every ten seconds until everything is produced. The first worker is spared."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.memory: Memory | None = None
        self.steady = ""
        self._victims: list[Worker] = []

    def __call__(self, run: Run) -> None:
        self.steady = run.workers[0].name
        self.memory = Memory(run.workers[0])
        self._victims = run.workers[1:]
        kinds: dict[str, Callable[[Run], None]] = {
            "worker killed": self._kill,
            "worker killed at a fail point": self._fail_point,
            "worker stopped and woken": self._freeze,
            "rolling restart": self._rolling,
            "broker killed and restarted": self._broker,
            "Redis killed and restarted": self._redis,
            "Redis silent for some seconds": self._silence,
        }
        began, number, names = time.monotonic(), 0, list(kinds)
        queue: list[str] = []
        try:
            while run.progress() < 1:
                number += 1
                pause = began + EVERY * number - time.monotonic()
                while pause > 0 and run.progress() < 1:
                    time.sleep(min(pause, 0.5))
                    pause = began + EVERY * number - time.monotonic()
                if run.progress() >= 1:
                    return
                if not queue:  # each kind equally often, in a random order
                    queue = run.rng.sample(names, len(names))
                name = queue.pop()
                kinds[name](run)
                self.faults[name] += 1
        finally:
            self.memory.stop()

    def _any(self, run: Run) -> int:
        return run.rng.randrange(len(self._victims))

    def _kill(self, run: Run) -> None:
        victim = self._victims[self._any(run)]
        run.kill(victim)
        run.restart(victim, ready=False)

    def _fail_point(self, run: Run) -> None:
        """A worker comes back with a fail point; if it has not come by after nine seconds, it is killed."""
        at = self._any(run)
        run.kill(self._victims[at])
        point = run.rng.choice(POINTS)
        passes = run.rng.randint(1, 2 if point in ("before-load", "before-offsets") else 50)
        name = self._victims[at].name
        doomed = run.start_worker(name, ready=False, supervised=False, SEGMENTER_FAIL_POINT=f"{point}:{passes}")
        doomed.exit_code(within=9)
        run.kill(doomed)
        self._victims[at] = run.start_worker(name, ready=False)

    def _freeze(self, run: Run) -> None:
        victim = self._victims[self._any(run)]
        victim.signal(signal.SIGSTOP)
        time.sleep(run.rng.uniform(3.5, 6))
        victim.signal(signal.SIGCONT)

    def _rolling(self, run: Run) -> None:
        for victim in self._victims:
            run.terminate(victim)
            run.restart(victim, ready=False)
            time.sleep(3)

    def _broker(self, run: Run) -> None:
        run.kafka.kill()
        time.sleep(run.rng.uniform(0, 1))
        run.kafka.start()

    def _redis(self, run: Run) -> None:
        run.redis.kill()
        time.sleep(run.rng.uniform(0, 2))
        run.redis.start()

    def _silence(self, run: Run) -> None:
        os.kill(run.redis.pid, signal.SIGSTOP)
        time.sleep(run.rng.uniform(1, 5))
        os.kill(run.redis.pid, signal.SIGCONT)


def soak(seed: int, events: int, minutes: float, folder: Path) -> dict[str, Any]:
    """Do it; returns a line of the results file."""
    Worker.forked = False  # their memory is to be their own
    every = events_of(events, seed)
    load = Load(f"{events} generated events", sent(every), replayed(every))
    del every
    strike = Soak()
    fault = Fault(
        "soak", "soak", strike, servers="own", settings=_SETTINGS, workers=3, rate=events / minutes / 60,
        load=lambda rng: load,
    )  # fmt: skip
    with Shared() as shared, Lane(shared) as lane, SERVERS["own"](lane) as servers:
        run = Run(fault, seed, 0, servers, folder)
        result = run.go()
    assert strike.memory is not None, result.said
    memory = strike.memory.figures()
    grown = memory["slope"] * memory["samples"] / 60 / memory["median"]
    faults = [result.said] if result.said else []
    if memory["samples"] >= _FLAT_AFTER and grown > _FLAT:
        faults.append(f"memory of {strike.steady} grew by {grown:.1%}")
    if memory["incarnations"] > 1:
        faults.append(f"{strike.steady} ended by itself, so that its memory says nothing")
    return {
        "soak": True,
        "seed": seed,
        "events": result.events,
        "seconds": result.seconds,
        "every": EVERY,
        "faults": dict(strike.faults),
        "lost": result.lost,
        "doubled": result.doubled,
        "repeats": result.repeats,
        "changes": len(load.expected.changes),
        "restarts": result.restarts,
        "memory": {strike.steady: memory},
        "good": not faults,
        "said": "; ".join(faults),
    }
