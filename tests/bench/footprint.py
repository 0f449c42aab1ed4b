"""What a customer costs: bytes in a worker and in Redis; how long a shard takes to load; how long a start takes.

``python -m tests.bench.footprint fill|load REDIS_URL CUSTOMERS little|much`` is what this module runs as processes of
their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import median
from typing import Any, Final, Literal, cast

import orjson
import redis

from models.events import ROLES, Role
from models.instants import FOREVER, format_instant
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
#: What is known of each customer: one purchase; or everything that the default policy keeps, and 16 purchases, as many
#: as it remembers ids of.
Known = Literal["little", "much"]
_PURCHASES: Final = 16
_CATEGORIES: Final = ("home", "toys", "books", "garden", "sports")
_PROGRAM: Final = (sys.executable, "-m", "streams.cli")


@dataclass(frozen=True)
class Footprint:
    """Of a shard under the full default policy: bytes per customer, and the seconds it takes to load."""

    known: Known
    customers: int
    worker: float
    redis: float
    row: float
    load: Sequence[float]


def footprint(known: Known, customers: int, repeats: int = 3) -> Footprint:
    """Fill a shard with so many customers of whom little or much is known, and load it in fresh processes."""
    with RealRedis() as server, redis.Redis.from_url(server.url) as client:
        before = int(client.info("memory")["used_memory"])
        row = float(_process("fill", server.url, customers, known)["row"])
        used = int(client.info("memory")["used_memory"]) - before
        loads = [_process("load", server.url, customers, known) for _ in range(repeats)]
    worker = median(float(load["bytes"]) for load in loads)
    return Footprint(
        known, customers, worker / customers, used / customers, row, [float(load["seconds"]) for load in loads]
    )


def _process(what: str, url: str, customers: int, known: Known) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.footprint", what, url, str(customers), known]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{what} failed:\n{done.stderr[-2000:]}")
    said: dict[str, float] = orjson.loads(done.stdout)
    return said


def _processor(store: RedisStore, customers: int) -> BatchProcessor:
    activations = cutoffs_of_workload(Workload(customers, 0)).activate(store)
    return BatchProcessor(Shard(0, 1, Settings().topics), activations, store, Clock.INGESTION)


def _fill(store: RedisStore, customers: int, known: Known) -> dict[str, float]:
    """Fold events of each customer, and commit them."""
    processor = _processor(store, customers)
    processor.load(dict.fromkeys(ROLES, 0), {})
    now, ends = int(time.time() * 1000), dict.fromkeys(ROLES, 0)
    turns = _everything(customers, now) if known == "much" else _one_purchase(customers)
    for role, events in turns:
        for part in iter(lambda: list(islice(events, _BATCH)), []):  # noqa: B023
            while (step := processor.follow()) is not None:
                processor.commit(step)
            start, ends[role] = ends[role], ends[role] + len(part)
            records = [BenchRecord(start + i, now, key, value) for i, (key, value) in enumerate(part)]
            batch, _ = processor.read(role, records, FOREVER)
            step = processor.fold(batch, (), {role: Range(start, ends[role])})
            processor.commit(step)
            if step.commit.entry is not None:
                store.acknowledge(0, [step.commit.entry.id])
    rows = store.rows_of(0, [f"c{number:08d}" for number in range(1_000)])
    return {"row": sum(len(row) for _, row in rows) / len(rows)}


def _one_purchase(customers: int) -> Iterator[tuple[Role, Iterator[tuple[bytes, bytes]]]]:
    yield "purchases", ((each.key, each.value) for each in Workload(customers, 0).first())


def _everything(customers: int, now: int) -> Iterator[tuple[Role, Iterator[tuple[bytes, bytes]]]]:
    """A signup and a survey, purchases of several kinds and a refund, with every attribute of the default policy."""
    occurred = format_instant((now - 3_600_000) * 1000)

    def events(kind: str, turn: int, **said: Any) -> Iterator[tuple[bytes, bytes]]:
        for number in range(customers):
            customer = f"c{number:08d}"
            event = {"kind": kind, "event_id": f"{turn}-{number}", "customer_id": customer, "occurred_at": occurred}
            yield customer.encode(), orjson.dumps(event | said)

    attributes = dict.fromkeys(("gender", "education", "family_status", "industry", "hobby"), "other")
    numbers = {"birth_year": 1980, "income": 48_000}
    yield "signups", events("signup", 0, country="DE", channel="online", attributes=attributes | numbers)
    yield "signups", events("survey", 1, score="82.5")
    paid = {"amount": "19.90", "currency": "USD", "channel": "online"}
    for turn in range(2, 2 + _PURCHASES):
        category = _CATEGORIES[turn % len(_CATEGORIES)]
        yield "purchases", events("purchase", turn, order_id=f"o{turn}", category=category, **paid)
    yield "purchases", events("refund", 2 + _PURCHASES, order_id="o2", **paid)


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


def _main(what: str, url: str, customers: str, known: Known) -> None:
    store = RedisStore(url, Settings().namespace, timeout=60)
    said = _fill(store, int(customers), known) if what == "fill" else _load(store, int(customers))
    store.close()
    sys.stdout.write(orjson.dumps(said).decode())


if __name__ == "__main__":
    _main(*sys.argv[1:4], cast(Known, sys.argv[4]))
