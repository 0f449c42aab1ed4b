"""``repartition`` on a real Kafka: 4 → 8 partitions between two parts of a load, killed and run again."""

import json
import random
import time
from functools import partial
from pathlib import Path

import pytest

from streams.generator import Population, generate
from streams.replay import replay
from streams.settings import read_policy
from tests.support import in_process
from tests.support.commands import SEGMENTER, Running, Worker, eventually
from tests.support.fleet import fleet
from tests.support.real_kafka import RealKafka
from tests.support.real_redis import RealRedis
from tests.support.recordings import LIFECYCLE
from tests.support.stored import Stored, stored
from tests.support.topics import CHANGES, DEAD_LETTERS, Topics, distinct, moves, out_of_order

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

UNTIL = "2025-01-31T00:00:00Z"


def _reached(state: Stored, name: str, mark: str) -> bool:
    """Whether the repartition has come so far, or is over."""
    fields = state.client.hgetall(f"{name}:fleet")
    return mark.encode() in fields or fields[b"partitions"] == b"8"


def _counted(settings: dict[str, str]) -> int:
    """Customers of all segments."""
    rows = [json.loads(line) for line in in_process.output("segments", "--json", settings=settings).splitlines()]
    return sum(row["customers"] for row in rows)


def test_more_partitions(kafka: RealKafka, redis: RealRedis, tmp_path: Path) -> None:
    """What was not read when the fleet stopped is folded under the old number; customers move; it goes on as one."""
    name = "more_partitions"
    settings = {
        **fleet(name),
        "SEGMENTER_BROKER": kafka.address,
        "SEGMENTER_REDIS": redis.url,
        "SEGMENTER_CLOCK": "event",
        "SEGMENTER_POLICY": str(LIFECYCLE),
        "SEGMENTER_BATCH_SIZE": "100",
    }
    in_process.output("topics", "create", "--partitions", "4", settings=settings)
    events = list(generate(Population(customers=150, days=380, seed=7)))
    third = len(events) // 3
    with (
        Topics(kafka.address, 4, prefix=f"{name}.") as topics,
        stored(redis.url, name, 8) as state,
        Worker(tmp_path, settings) as worker,
    ):
        worker.ready()
        topics.put(events[:third])
        eventually(lambda: topics.size(CHANGES) > 50, 30, "something is processed")
        assert "workers of group" in in_process.refused("repartition", "--partitions", "8", settings=settings)
        assert worker.terminate(within=15)[0] == 0, worker.log
        topics.put(events[third : 2 * third])  # nobody reads them
        rng, command = random.Random(5), (*SEGMENTER, "repartition", "--partitions", "8")
        for mark in ("repartition", "drained"):
            with Running(tmp_path, settings, command, mark) as run:
                eventually(partial(_reached, state, name, mark), 30, run.log)
                time.sleep(rng.uniform(0.0, 0.3))
                run.kill()
        if state.client.hexists(f"{name}:fleet", "repartition"):
            worker.start()
            assert worker.exit_code(within=30) == 1, worker.log
            assert "is under way" in worker.log
        in_process.output("repartition", "--partitions", "8", settings=settings)
        assert len(topics.ends("purchases")) == 8
        assert state.unpublished() == 0
        assert sum(state.client.hlen(f"{{{name}:{shard}}}:customers") for shard in range(4, 8)) > 50
        assert "other partitions" in in_process.refused("rebuild", "--yes", settings=settings)
        worker.start().ready()
        tick = {"kind": "tick", "occurred_at": UNTIL}
        with Topics(kafka.address, 8, prefix=f"{name}.") as wider:  # a producer that knows of all partitions
            wider.put([*events[2 * third :], tick])
        eventually(lambda: state.settled(topics), 60, "everything is processed")
        seen = distinct(topics.changes())
        wanted = moves(replay([*events, tick], policy=read_policy(LIFECYCLE)))
        assert moves(seen) == wanted
        assert next(out_of_order(seen), None) is None
        assert topics.size(DEAD_LETTERS) == 0
        exported = len(in_process.output("export", settings=settings).splitlines())
        assert exported == sum(state.client.hlen(f"{{{name}:{shard}}}:customers") for shard in range(8))
        assert _counted(settings) == exported
        assert worker.terminate(within=15)[0] == 0, worker.log

        for key in state.client.keys(f"*{name}*"):
            state.client.delete(key)
        worker.start()
        assert worker.exit_code(within=40) == 1, worker.log
        assert "backup made after the repartition" in worker.log.rpartition("segmenter: ")[2]
