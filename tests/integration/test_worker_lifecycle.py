"""A worker's start, stop and survival: what it says when it cannot start, how it ends, and what it outlives.

Every worker is a process of its own on the embedded broker; what only a real Kafka does is in test_on_kafka.py.
Most of it is waiting, so the stories run at the same time, a few at a time.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faust.types import TP

from streams.embedded.redis import EmbeddedRedis
from streams.embedded.server import free_ports
from streams.embedded.stack import EmbeddedStack
from streams.errors import OffsetGap, ServiceUnavailable
from streams.generator import Population, generate
from streams.kafka.transport import LogRange
from streams.replay import replay
from streams.settings import Settings
from streams.shards import start_of
from tests.support.commands import FAUST, SEGMENTER, Running, Worker, eventually, output_of, segmenter
from tests.support.real_redis import RealRedis
from tests.support.stored import Stored, stored
from tests.support.together import Told, telling
from tests.support.topics import CHANGES, Topics, distinct, moves, out_of_order

PASSWORD = "hunter2-secret"
START_SECONDS = 15.0
STOP_SECONDS = 10.0
QUICK = {"SEGMENTER_CLOCK": "event", "SEGMENTER_SESSION_TIMEOUT": "3"}
#: Small commits, so that a burst of records takes a while.
SLOW = {**QUICK, "SEGMENTER_BATCH_SIZE": "20"}
STALL_AFTER = 5
STALLING = {**QUICK, "SEGMENTER_STALL_AFTER": str(STALL_AFTER)}


@contextmanager
def _stack() -> Iterator[tuple[EmbeddedStack, Topics, Stored]]:
    """A broker with its topics, and a Redis."""
    with (
        EmbeddedStack(Settings()) as running,
        Topics(running.broker.address) as topics,
        stored(running.redis.url) as state,
    ):
        yield running, topics, state


def _history(customers: int, seed: int = 3, start: datetime = datetime(2024, 1, 1, tzinfo=UTC)) -> list[dict[str, Any]]:
    """Events of generated customers over 300 days, with a tick a year after their start."""
    events = list(generate(Population(customers=customers, days=300, seed=seed, start=start)))
    return [*events, {"kind": "tick", "occurred_at": start.replace(year=start.year + 1).isoformat()}]


def _purchase(number: int, customer: str, at: str) -> dict[str, Any]:
    return {
        "event_id": f"p-{number}",
        "kind": "purchase",
        "customer_id": customer,
        "order_id": f"o-{number}",
        "occurred_at": at,
        "amount": "10.00",
        "currency": "USD",
    }


def _agrees(events: list[dict[str, Any]], topics: Topics) -> None:
    """What is on the topic, repeats dropped, is what a replay gives, in order per customer."""
    seen = distinct(topics.changes())
    wanted, found = moves(replay(events)), moves(seen)
    assert found == wanted, f"missing: {list(wanted - found)[:5]}, too many: {list(found - wanted)[:5]}"
    assert next(out_of_order(seen), None) is None


# --- starting ---------------------------------------------------------------------------------------------------


class Attempt(NamedTuple):
    """A worker that was to start, and what came of it."""

    code: int | None
    seconds: float
    said: str


#: What is wrong, what the sentence must name.
FAULTS = {
    "broker_missing": ["Kafka at 127.0.0.1:", "did not answer", "SEGMENTER_BROKER"],
    "redis_missing": ["Redis at 127.0.0.1:", "SEGMENTER_REDIS"],
    "redis_silent": ["Redis at 127.0.0.1:", "SEGMENTER_REDIS"],
    "wrong_password": ["refused the user or password", "SEGMENTER_REDIS"],
    "policy_missing": ["cannot read the policy", "absent.toml", "No such file"],
    "policy_not_toml": ["broken.toml", "not valid TOML"],
    "policy_wrong_key": ["misspelt.toml", "dimensions.lifecycle.lapse_aftr"],
    "bad_choice": ["SEGMENTER_CLOCK", "'ingestion' or 'event'", "sundial"],
    "bad_number": ["SEGMENTER_BATCH_SIZE", "many"],
    "bad_redis_scheme": ["SEGMENTER_REDIS", "redis://"],
    "bad_redis_port": ["SEGMENTER_REDIS"],
    "http_port_taken": ["cannot listen on 127.0.0.1:", "SEGMENTER_HTTP_PORT"],
}


def _faulty_settings(
    folder: Path, good: EmbeddedStack, silent: EmbeddedRedis, locked: EmbeddedRedis, taken: int
) -> dict[str, dict[str, str]]:
    (nobody,) = free_ports(1)
    (folder / "broken.toml").write_text("this is = = not TOML")
    (folder / "misspelt.toml").write_text(
        'version = 1\n[dimensions.lifecycle]\nengine = "lifecycle"\nlapse_aftr = "90d"\n'
    )
    login = f"redis://:{PASSWORD}@"
    faults: dict[str, dict[str, str]] = {
        "broker_missing": {"SEGMENTER_BROKER": f"127.0.0.1:{nobody}"},
        "redis_missing": {"SEGMENTER_REDIS": f"{login}127.0.0.1:{nobody}/0"},
        "redis_silent": {"SEGMENTER_REDIS": f"{login}{silent.address}/0"},
        "wrong_password": {"SEGMENTER_REDIS": f"{login}{locked.address}/0"},
        "policy_missing": {"SEGMENTER_POLICY": str(folder / "absent.toml")},
        "policy_not_toml": {"SEGMENTER_POLICY": str(folder / "broken.toml")},
        "policy_wrong_key": {"SEGMENTER_POLICY": str(folder / "misspelt.toml")},
        "bad_choice": {"SEGMENTER_CLOCK": "sundial"},
        "bad_number": {"SEGMENTER_BATCH_SIZE": "many"},
        "bad_redis_scheme": {"SEGMENTER_REDIS": f"http://:{PASSWORD}@127.0.0.1:{nobody}/0"},
        "bad_redis_port": {"SEGMENTER_REDIS": f"{login}127.0.0.1:port/0"},
        "http_port_taken": {"SEGMENTER_HTTP_PORT": str(taken)},
    }
    assert faults.keys() == FAULTS.keys()
    return {name: {**good.environment(), **fault} for name, fault in faults.items()}


def _attempt(settings: dict[str, str]) -> Attempt:
    began = time.monotonic()
    try:
        done = segmenter("worker", settings=settings, within=2 * START_SECONDS)
    except subprocess.TimeoutExpired as error:
        return Attempt(None, time.monotonic() - began, (error.stderr or b"").decode())
    return Attempt(done.returncode, time.monotonic() - began, (done.stdout + done.stderr).decode())


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Attempt]]]:
    """A worker started with each fault, two at a time."""
    folder = tmp_path_factory.mktemp("policies")
    with ExitStack() as running:
        try:
            good = running.enter_context(EmbeddedStack(Settings()))
            silent = running.enter_context(EmbeddedRedis())
            locked = running.enter_context(EmbeddedRedis(password="another"))
        except ServiceUnavailable as unavailable:
            pytest.skip(str(unavailable))
        listener = running.enter_context(socket.create_server(("127.0.0.1", 0)))
        settings = _faulty_settings(folder, good, silent, locked, listener.getsockname()[1])
        running.callback(silent.kill)
        os.kill(silent.pid, signal.SIGSTOP)
        pool = running.enter_context(ThreadPoolExecutor(2))
        yield {name: pool.submit(_attempt, each) for name, each in settings.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_cannot_start_says_why(fault: str, attempts: dict[str, Future[Attempt]]) -> None:
    """One sentence on what is wrong and where to mend it, soon, with a non-zero exit code and no traceback."""
    attempt = attempts[fault].result()
    assert attempt.code == 1, attempt
    assert attempt.seconds < START_SECONDS, attempt
    assert "Traceback" not in attempt.said, attempt.said
    assert attempt.said.count("segmenter: ") == 1, attempt.said
    sentence = attempt.said.partition("segmenter: ")[2]
    assert all(word in sentence for word in FAULTS[fault]), sentence
    assert PASSWORD not in attempt.said


def test_faust_says_why_it_cannot_start(tmp_path: Path) -> None:
    """``faust -A streams.kafka.app worker`` with a missing broker: the same sentence, no traceback."""
    with EmbeddedRedis() as redis:
        (nobody,) = free_ports(1)
        settings = {
            "SEGMENTER_BROKER": f"127.0.0.1:{nobody}",
            "SEGMENTER_REDIS": redis.url,
            "SEGMENTER_START_WITHIN": "2",
        }
        with Running(tmp_path, settings, FAUST, "faust") as faust:
            code = faust.exit_code(within=START_SECONDS)
            assert code == 1, faust.log
            assert "Traceback" not in faust.log, faust.log
            assert "segmenter: Kafka at 127.0.0.1:" in faust.log
            assert "SEGMENTER_BROKER" in faust.log


# --- stories ----------------------------------------------------------------------------------------------------


def faust_starts_a_worker(folder: Path) -> None:
    """``faust -A streams.kafka.app worker --without-web`` processes events and stops on SIGTERM like our own."""
    events = [_purchase(1, "c-1", "2024-01-01T00:00:00Z"), {"kind": "tick", "occurred_at": "2024-06-01T00:00:00Z"}]
    with _stack() as (stack, topics, state), Worker(folder, {**stack.environment(), **QUICK}, command=FAUST) as worker:
        worker.ready()
        topics.put(events)
        eventually(lambda: state.settled(topics), 30, "the events are folded")
        _agrees(events, topics)
        _stops(worker)


def _stops(worker: Worker) -> None:
    """On SIGTERM the worker ends in time, without an error."""
    code, seconds = worker.terminate(within=20)
    assert code == 0, worker.log
    assert seconds < STOP_SECONDS, worker.log
    assert "Traceback" not in worker.log, worker.log


def stops_with_records_in_flight(folder: Path) -> None:
    """SIGTERM ends a worker within 10 s; what was under way is finished by the next, nothing is lost or doubled."""
    events = _history(customers=800)
    with _stack() as (stack, topics, state), Worker(folder, {**stack.environment(), **SLOW}) as worker:
        worker.ready()
        topics.put(events)
        eventually(lambda: topics.size(CHANGES) > 50, 30, "the first changes")
        _stops(worker)
        assert state.behind(topics) > 0, "everything had been processed before it stopped"
        worker.start()
        eventually(lambda: state.settled(topics), 120, "the rest is processed")
        _agrees(events, topics)
        _stops(worker)


@contextmanager
def _broker_that_can_fail(folder: Path) -> Iterator[tuple[Running, dict[str, str]]]:
    """A broker in a process of its own, a Redis, and the settings of a worker on both."""
    with EmbeddedRedis() as redis, Running(folder, {}, (*SEGMENTER, "stack"), "stack") as broker:
        eventually(lambda: "SEGMENTER_REDIS=" in broker.log, 30, "the broker is up")
        address = broker.log.partition("SEGMENTER_BROKER=")[2].split()[0]
        yield broker, {"SEGMENTER_BROKER": address, "SEGMENTER_REDIS": redis.url}


def stops_with_the_broker_gone(folder: Path) -> None:
    """SIGTERM ends a worker within 10 s when the broker went away with records in flight."""
    with (
        _broker_that_can_fail(folder) as (broker, settings),
        Topics(settings["SEGMENTER_BROKER"]) as topics,
        Worker(folder, {**settings, **SLOW}) as worker,
    ):
        worker.ready()
        topics.put(_history(customers=800))
        eventually(lambda: topics.size(CHANGES) > 50, 30, "the first changes")
        broker.kill()
        _stops(worker)


def stops_with_redis_gone(folder: Path) -> None:
    """SIGTERM ends a worker within 10 s when Redis went away with records in flight."""
    with _stack() as (stack, topics, _), Worker(folder, {**stack.environment(), **SLOW}) as worker:
        worker.ready()
        topics.put(_history(customers=800))
        eventually(lambda: topics.size(CHANGES) > 50, 30, "the first changes")
        stack.redis.kill()
        eventually(lambda: "loading it again" in worker.log, 20, "the worker notices")
        _stops(worker)


def _ends_itself(worker: Worker) -> None:
    """The watchdog ends the worker with its code and a sentence, not long after SEGMENTER_STALL_AFTER."""
    assert worker.exit_code(within=STALL_AFTER + 10) == 70, worker.log
    assert "segmenter: no progress for" in worker.log
    assert f"SEGMENTER_STALL_AFTER is {STALL_AFTER}" in worker.log


def ends_itself_when_redis_is_gone(folder: Path) -> None:
    """A worker that has records to fold and no Redis ends with code 70; before that it says that it is not well."""
    with _stack() as (stack, topics, _), Worker(folder, {**stack.environment(), **STALLING}) as worker:
        worker.ready()
        stack.redis.kill()
        topics.put([_purchase(1, "c-1", "2024-01-01T00:00:00Z")])
        _ends_itself(worker)


def ends_itself_when_redis_falls_silent(folder: Path) -> None:
    """The same with a Redis that accepts connections and answers nothing."""
    with _stack() as (stack, topics, _), Worker(folder, {**stack.environment(), **STALLING}) as worker:
        worker.ready()
        os.kill(stack.redis.pid, signal.SIGSTOP)
        topics.put([_purchase(1, "c-1", "2024-01-01T00:00:00Z")])
        _ends_itself(worker)
        stack.redis.kill()


def ends_itself_when_the_broker_falls_silent(folder: Path) -> None:
    """An idle worker whose broker answers nothing may have everything to do: it ends itself, too."""
    with _broker_that_can_fail(folder) as (broker, settings), Worker(folder, {**settings, **STALLING}) as worker:
        worker.ready()
        # It has seen the end of each topic of each shard: there is nothing to do, as far as it knows.
        eventually(lambda: worker.get("/metrics")[1].count("\nsegmenter_consumer_lag_records{") >= 12, 30, "all read")
        broker.signal(signal.SIGSTOP)
        _ends_itself(worker)
        broker.kill()


def goes_on_when_redis_restarts(folder: Path) -> None:
    """A Redis that is killed and comes back with its data interrupts a worker and costs nothing."""
    events = _history(customers=800)
    half = len(events) // 2
    with _stack() as (stack, topics, _), RealRedis(config={"appendfsync": "always"}) as redis:
        settings = {**stack.environment(), "SEGMENTER_REDIS": redis.url, **SLOW}
        with stored(redis.url) as state, Worker(folder, settings) as worker:
            worker.ready()
            topics.put(events[:half])
            eventually(lambda: topics.size(CHANGES) > 50, 30, "the first changes")
            redis.kill()
            topics.put(events[half:])
            eventually(lambda: "loading it again" in worker.log, 20, "the worker notices")
            redis.start()
            eventually(lambda: state.settled(topics), 60, "everything is processed")
            assert worker.process.running, worker.log
            _agrees(events, topics)


def rebuilds_what_redis_lost(folder: Path) -> None:
    """Redis emptied while no worker ran: the same changes again, marked as history; what is new is not history."""
    before = _history(customers=200)
    after = _history(customers=200, seed=4, start=datetime(2025, 1, 1, tzinfo=UTC))
    with _stack() as (stack, topics, state), Worker(folder, {**stack.environment(), **QUICK}) as worker:
        worker.ready()
        topics.put(before)
        eventually(lambda: state.settled(topics), 30, "the first half is processed")
        first, ends = topics.changes(), topics.ends(CHANGES)
        # The first cut-offs and the first model of all label everybody, which is no move that anybody made.
        begun = [change for change in first if change["cause"] in ("population", "model") and change["from"] is None]
        assert all(change["backfill"] == (change in begun) for change in first)
        _stops(worker)
        state.client.flushall()
        topics.put(after)
        worker.start()
        eventually(lambda: state.settled(topics), 60, "the state is rebuilt")
        again = [json.loads(record.value or b"null") for record in topics.read(CHANGES, ends)]
    old = {change["change_id"]: change["sequence"] for change in first}
    repeated = [change for change in again if change["change_id"] in old]
    fresh = [change for change in again if change["change_id"] not in old]
    assert {change["change_id"]: change["sequence"] for change in repeated} == old
    assert {change["backfill"] for change in repeated} == {True}
    assert {change["backfill"] for change in fresh} == {False}


def recovers_when_redis_is_emptied_under_it(folder: Path) -> None:
    """Redis emptied while a worker runs: it notices at its next commit, rebuilds, and the state can be read."""
    events = _history(customers=200)
    half = len(events) // 2
    with _stack() as (stack, topics, state):
        settings = {**stack.environment(), **QUICK}
        with Worker(folder, settings) as worker:
            worker.ready()
            topics.put(events[:half])
            eventually(lambda: state.settled(topics), 30, "the first half is processed")
            state.client.flushall()
            topics.put(events[half:])
            eventually(lambda: state.settled(topics), 30, "the state is rebuilt")
            assert worker.process.running, worker.log
            _agrees(events, topics)
            exported = output_of("export", settings=settings).splitlines()
            assert len(exported) == len({event["customer_id"] for event in events[:-1]})


def stops_when_redis_is_ahead_of_the_log(folder: Path) -> None:
    """A stored offset beyond the log's end (a topic made anew) ends the worker with what the operator can do."""
    with _stack() as (stack, _, state):
        state.client.hset("{segmenter:2}:shard", "offset:purchases", "5")
        with Worker(folder, {**stack.environment(), **QUICK}) as worker:
            assert worker.exit_code(within=30) == 1, worker.log
            assert (
                "segmenter: purchases, partition 2: Redis stands at offset 5, and the log ends at 0: the topic was "
                "recreated or truncated. Restore the topic; or, to start over, use another SEGMENTER_NAMESPACE"
            ) in worker.log
            assert "Traceback" not in worker.log, worker.log


STORIES = (
    stops_with_records_in_flight,
    ends_itself_when_the_broker_falls_silent,
    stops_with_the_broker_gone,
    rebuilds_what_redis_lost,
    ends_itself_when_redis_is_gone,
    ends_itself_when_redis_falls_silent,
    goes_on_when_redis_restarts,
    recovers_when_redis_is_emptied_under_it,
    stops_with_redis_gone,
    stops_when_redis_is_ahead_of_the_log,
    faust_starts_a_worker,
)

told = telling(STORIES, at_once=4)


@pytest.mark.slow
@pytest.mark.parametrize("story", [story.__name__ for story in STORIES])
def test_a_worker(story: str, told: Told) -> None:
    """The story comes out as it says it does."""
    told[story].result()


# --- where reading starts ---------------------------------------------------------------------------------------


PURCHASES_3 = TP("purchases", 3)


@pytest.mark.parametrize(
    ("kept", "stored_offset", "expected"),
    [
        (LogRange(0, 0, None), None, (0, 0)),
        (LogRange(0, 9, None), None, (0, 9)),
        (LogRange(4, 9, None), None, (4, 9)),
        (LogRange(0, 9, 6), None, (0, 6)),
        (LogRange(0, 9, 6), 6, (6, 6)),
        (LogRange(0, 9, 6), 2, (2, 6)),
        (LogRange(0, 9, 6), 8, (8, 6)),
        (LogRange(2, 9, None), 2, (2, 0)),
        (LogRange(0, 9, 9), 9, (9, 9)),
    ],
    ids=[
        "first start on nothing: from the beginning",
        "first start: all there is is history",
        "first start, the beginning deleted: from what there is",
        "Redis emptied: everything again, history up to the commit",
        "as left",
        "Redis came back older: again from there, history up to the commit",
        "Kafka's commit lags: from Redis",
        "the first record kept is the next one",
        "read to the end",
    ],
)
def test_where_reading_starts(kept: LogRange, stored_offset: int | None, expected: tuple[int, int]) -> None:
    """Redis's offset decides; without one the log's beginning; history ends at Kafka's commit."""
    assert start_of(PURCHASES_3, kept, stored_offset) == expected


@pytest.mark.parametrize(
    ("kept", "stored_offset", "named"),
    [
        (LogRange(4, 9, 6), None, ["committed offset 6", "below 4"]),
        (LogRange(4, 9, None), 3, ["offset 3", "below 4"]),
        (LogRange(4, 9, 9), 3, ["offset 3", "below 4"]),
        (LogRange(0, 9, None), 10, ["offset 10", "ends at 9"]),
    ],
    ids=["emptied, and the beginning deleted", "gap", "gap with a commit", "beyond the end"],
)
def test_what_cannot_be_read_again(kept: LogRange, stored_offset: int | None, named: list[str]) -> None:
    """OffsetGap names the partition, both offsets, and what to do."""
    with pytest.raises(OffsetGap) as raised:
        start_of(PURCHASES_3, kept, stored_offset)
    sentence = str(raised.value)
    assert all(part in sentence for part in ["purchases, partition 3", *named]), sentence
    assert "to rebuild" in sentence or "to start over" in sentence
