"""SIGTERM in every state a worker can be in: it ends within ten seconds, with exit code 0.

They are runs like those of faults (group ``stop``), but what is judged is the stop alone: ``run.terminate`` refuses any
other code or a longer time.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.faults.load import PARTITIONS
from tests.faults.run import Outcome, Run, fault
from tests.support.commands import Worker, eventually

#: Rows added to each shard where loading must take its time.
_MANY_ROWS = 100_000

_Reach = Callable[[Run], Worker]


def state(name: str, **more: Any) -> Callable[[_Reach], _Reach]:
    """Register a function that brings a worker of its run into a state, and returns it; ``more`` as in Fault."""

    def register(reach: _Reach) -> _Reach:
        def strike(run: Run) -> Outcome:
            seconds = run.terminate(reach(run))
            return Outcome(f"ended after {seconds:.1f} s")

        fault(name, group="stop", **{"workers": 1, "runs": 3, "selected": True, **more})(strike)
        return reach

    return register


@state("starting up", workers=0)
def starting_up(run: Run) -> Worker:
    """At any moment of the first three seconds."""
    worker = run.start_worker(ready=False)
    time.sleep(run.rng.uniform(0.2, 3))
    return worker


@state("Kafka is away", servers="kafka")
def kafka_away(run: Run) -> Worker:
    """The broker was killed under load."""
    run.until_produced(0.2)
    run.kafka.kill()
    time.sleep(run.rng.uniform(0.5, 2))
    return run.workers[0]


def _frozen(run: Run, server: int, least: float) -> Worker:
    """Stop a server's process until the run's end, for ``least`` seconds before the worker is told to stop."""
    os.kill(server, signal.SIGSTOP)
    run.on_end(lambda: os.kill(server, signal.SIGCONT))
    time.sleep(run.rng.uniform(least, 2))
    return run.workers[0]


@state("publishing is blocked", servers="kafka")
def publishing_blocked(run: Run) -> Worker:
    """The broker has connections and answers nothing."""
    run.until_produced(0.2)
    return _frozen(run, run.kafka.pid, least=1)


@state("Redis is away at an assignment", servers="redis", workers=2)
def redis_away(run: Run) -> Worker:
    """Shards of another worker come to it while Redis is gone."""
    run.until_produced(0.2)
    worker, other = run.workers
    run.redis.kill()
    run.kill(other)
    eventually(lambda: "trying again" in worker.log, 30, "an assignment without Redis")
    return worker


@state("Redis hangs in a commit", servers="redis")
def redis_hangs(run: Run) -> Worker:
    """Redis has connections and answers nothing, under load."""
    run.until_produced(0.2)
    return _frozen(run, run.redis.pid, least=0.5)


@state("loading large shards")
def loading(run: Run) -> Worker:
    """400,000 rows in four shards."""
    run.until_produced(0.2)
    run.hold()
    worker = run.workers[0]
    eventually(run.settled, 30, "what was produced is folded")
    run.terminate(worker)
    for shard in range(PARTITIONS):
        key = run.state.key(shard, "customers")
        row = next(iter(run.state.client.hscan(key, count=10)[1].values()))
        for first in range(0, _MANY_ROWS, 20_000):
            run.state.client.hset(key, mapping={f"more-{n}": row for n in range(first, first + 20_000)})
    before = worker.log.count("learning clusters from")
    run.restart(worker, ready=False)
    eventually(lambda: worker.log.count("learning clusters from") > before, 30, "shards are assigned")
    time.sleep(run.rng.uniform(0, 0.5))
    return worker


@state("a rebalance is under way", workers=2)
def rebalancing(run: Run) -> Worker:
    """A third worker joins, and the group waits for the second, which sleeps."""
    run.until_produced(0.2)
    worker, sleeper = run.workers
    newcomer = run.start_worker(ready=False)
    eventually(lambda: newcomer.address, 30, "the newcomer starts")
    sleeper.signal(signal.SIGSTOP)
    time.sleep(run.rng.uniform(0.5, 2))
    return worker


@state("idle")
def idle(run: Run) -> Worker:
    """Everything is done."""
    run.until_produced(0.1)
    run.hold()
    eventually(run.settled, 30, "what was produced is folded")
    time.sleep(1)
    return run.workers[0]


@state("a backlog under full load", settings={"SEGMENTER_BATCH_SIZE": "5"}, rate=100_000)
def backlog(run: Run) -> Worker:
    """Thousands of records wait."""
    eventually(lambda: run.production.over, 30, "all is produced")
    assert run.state.behind(run.topics) > 100, "there was no backlog"
    return run.workers[0]


@state("a topic that lags is waited for", settings={"SEGMENTER_MERGE_WAIT": "60"})
def lagging(run: Run) -> Worker:
    """A record stamped 50 minutes ahead: no other topic can vouch for the time before it."""
    run.until_produced(0.1)
    run.hold()
    eventually(run.settled, 30, "what was produced is folded")
    purchases = ConfigResource(
        ResourceType.TOPIC,
        run.settings["SEGMENTER_PURCHASES_TOPIC"],
        incremental_configs=[
            ConfigEntry("message.timestamp.type", "CreateTime", incremental_operation=AlterConfigOpType.SET)
        ],
    )
    admin = AdminClient({"bootstrap.servers": run.settings["SEGMENTER_BROKER"], "log_level": 0})
    admin.incremental_alter_configs([purchases])[purchases].result(10)
    _, partition, key, value = next(record for record in run.load.records if record.topic == "purchases")
    run.topics.send("purchases", value, key, partition, timestamp=int((time.time() + 3000) * 1000))
    run.topics.flush()
    time.sleep(2)
    assert run.state.behind(run.topics) == 1, "the record was not waited with"
    return run.workers[0]


@state("its shards are another's", workers=2, settings={"SEGMENTER_SESSION_TIMEOUT": "2"})
def shards_lost(run: Run) -> Worker:
    """It slept beyond its session and has just woken."""
    run.until_produced(0.2)
    victim, other = run.workers
    before = other.log.count(" loaded:")
    victim.signal(signal.SIGSTOP)
    try:
        eventually(lambda: other.log.count(" loaded:") >= before + PARTITIONS // 2, 30, "the other took over")
    finally:
        victim.signal(signal.SIGCONT)
    return victim
