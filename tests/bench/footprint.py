"""What a customer costs: bytes in a worker and in Redis; how long a shard takes to load; how long a start takes.

``python -m tests.bench.footprint fill|load REDIS_URL CUSTOMERS`` is what this module runs as processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

import orjson
import redis

from models.events import ROLES
from models.instants import FOREVER
from streams import memory
from streams.commit import Range
from streams.embedded.server import LOOPBACK
from streams.processor import BatchProcessor, Clock, Shard
from streams.settings import Settings
from streams.store.redis import RedisStore
from tests.bench.contenders import ROOT, SegmenterWorker
from tests.bench.events import BenchRecord
from tests.bench.policies import cutoffs_of_workload
from tests.bench.servers import BenchError, Servers
from tests.bench.throughput import running
from tests.bench.workload import Workload
from tests.support.processes import memory as resident
from tests.support.real_redis import RealRedis

_BATCH: Final = 5_000
_PROGRAM: Final = (sys.executable, "-m", "streams.cli")


@dataclass(frozen=True)
class Footprint:
    """Of a shard under the full default policy: bytes per customer, and the seconds it takes to load."""

    customers: int
    worker: float
    redis: float
    row: float
    load: Sequence[float]


def footprint(customers: int = 1_000_000, repeats: int = 3) -> Footprint:
    """Fill a shard with so many customers, and load it in fresh processes."""
    with RealRedis() as server, redis.Redis.from_url(server.url) as client:
        before = int(client.info("memory")["used_memory"])
        row = float(_process("fill", server.url, customers)["row"])
        used = int(client.info("memory")["used_memory"]) - before
        loads = [_process("load", server.url, customers) for _ in range(repeats)]
    worker = median(float(load["bytes"]) for load in loads)
    return Footprint(customers, worker / customers, used / customers, row, [float(load["seconds"]) for load in loads])


def _process(what: str, url: str, customers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.footprint", what, url, str(customers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{what} failed:\n{done.stderr[-2000:]}")
    said: dict[str, float] = orjson.loads(done.stdout)
    return said


def _processor(store: RedisStore, customers: int) -> BatchProcessor:
    activations = cutoffs_of_workload(Workload(customers, 0)).activate(store)
    return BatchProcessor(Shard(0, 1, Settings().topics), activations, store, Clock.INGESTION)


def _fill(store: RedisStore, customers: int) -> dict[str, float]:
    """Fold one purchase of each customer, and commit it."""
    processor = _processor(store, customers)
    processor.load(dict.fromkeys(ROLES, 0), {})
    now, offset, records = int(time.time() * 1000), 0, list[BenchRecord]()
    for number, each in enumerate(Workload(customers, 0).first()):
        records.append(BenchRecord(number, now, each.key, each.value))
        if len(records) == _BATCH or number == customers - 1:
            while (step := processor.follow()) is not None:
                processor.commit(step)
            batch, _ = processor.read("purchases", records, FOREVER)
            step = processor.fold(batch, (), {"purchases": Range(offset, number + 1)})
            processor.commit(step)
            if step.commit.entry is not None:
                store.acknowledge(0, [step.commit.entry.id])
            offset, records = number + 1, []
    rows = store.rows_of(0, [f"c{number:08d}" for number in range(1_000)])
    return {"row": sum(len(row) for _, row in rows) / len(rows)}


def _load(store: RedisStore, customers: int) -> dict[str, float]:
    # As a worker does at its start.
    memory.bound()
    memory.collect_seldom()
    processor = _processor(store, customers)
    memory.tidy()
    before, began = resident(os.getpid()), time.perf_counter()
    processor.load(dict.fromkeys(ROLES, 0), {})
    seconds = time.perf_counter() - began
    if len(processor.table) != customers:
        raise BenchError(f"{len(processor.table)} customers were loaded, not {customers}")
    memory.tidy()
    return {"seconds": seconds, "bytes": resident(os.getpid()) - before}


def help_seconds(repeats: int = 9) -> list[float]:
    """Seconds that ``segmenter --help`` takes."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([*_PROGRAM, "--help"], cwd=ROOT, capture_output=True, check=True)
        found.append(time.perf_counter() - began)
    return found


def ready_seconds(where: Servers, repeats: int = 5) -> list[float]:
    """Seconds from the start of a worker, with its broker there, until it says that it is ready."""
    found = []
    for number in range(repeats):
        where.redis.flushall()
        worker = SegmenterWorker(where)
        worker.given["group"] = f"ready-{number}"
        began = time.perf_counter()
        with running(worker) as process:
            process.wait_for(partial(_is_ready, worker.port), "being ready")
            found.append(time.perf_counter() - began)
    return found


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _main(what: str, url: str, customers: str) -> None:
    store = RedisStore(url, Settings().namespace, timeout=60)
    said = {"fill": _fill, "load": _load}[what](store, int(customers))
    store.close()
    sys.stdout.write(orjson.dumps(said).decode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
