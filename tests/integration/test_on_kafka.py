"""What only a real Kafka does: topics that are missing or made wrong, deleted records, a broker that restarts."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from streams.errors import PublishRefused
from streams.generator import Population, generate
from streams.kafka.publisher import KafkaPublisher, OutputTopics
from streams.replay import replay
from tests.support.commands import Worker, eventually, output_of, segmenter
from tests.support.fleet import fleet
from tests.support.real_kafka import RealKafka
from tests.support.real_redis import RealRedis, RedisUnavailable
from tests.support.stored import stored
from tests.support.topics import Topics, distinct, moves, out_of_order

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture(scope="module")
def redis() -> Iterator[RealRedis]:
    """A Redis for this module; each test has a namespace of its own."""
    try:
        with RealRedis() as server:
            yield server
    except RedisUnavailable as unavailable:
        pytest.skip(str(unavailable))


@pytest.fixture
def settings(kafka: RealKafka, redis: RealRedis, request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of a fleet of the test's own."""
    name = request.node.name.removeprefix("test_")
    return {"SEGMENTER_BROKER": kafka.address, "SEGMENTER_REDIS": redis.url, **fleet(name), "SEGMENTER_CLOCK": "event"}


def _fails(settings: dict[str, str], *command: str) -> str:
    done = segmenter(*command, settings=settings)
    said = done.stderr.decode()
    assert done.returncode == 1, said
    assert "Traceback" not in said
    return said


def _config(admin: AdminClient, topic: str) -> dict[str, str]:
    (answer,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    return {name: entry.value for name, entry in answer.result(10).items()}


def test_topics_create(settings: dict[str, str]) -> None:
    """Creates what is missing as it must be, twice without harm; what exists stays as it is."""
    said = output_of("topics", "create", "--partitions", "3", settings=settings)
    assert said.count("created") == 7
    again = output_of("topics", "create", "--partitions", "3", settings=settings)
    assert (again.count("created"), again.count("exists")) == (0, 7)
    admin = AdminClient({"bootstrap.servers": settings["SEGMENTER_BROKER"]})
    found = admin.list_topics(timeout=10).topics
    for name in ("PURCHASES", "SIGNUPS", "ERASURES"):
        topic = settings[f"SEGMENTER_{name}_TOPIC"]
        config = _config(admin, topic)
        assert len(found[topic].partitions) == 3
        assert (config["retention.ms"], config["retention.bytes"]) == ("-1", "-1")
        assert config["cleanup.policy"] == "delete"
        assert config["message.timestamp.type"] == "LogAppendTime"
    assert len(found[settings["SEGMENTER_CHANGES_TOPIC"]].partitions) == 3
    assert _config(admin, settings["SEGMENTER_CHANGES_TOPIC"])["cleanup.policy"] == "delete"
    assert _config(admin, settings["SEGMENTER_SNAPSHOTS_TOPIC"])["cleanup.policy"] == "compact"
    assert len(found[settings["SEGMENTER_DEAD_LETTERS_TOPIC"]].partitions) == 1
    samples = settings["SEGMENTER_SAMPLES_TOPIC"]
    kept = {name: _config(admin, samples)[name] for name in ("retention.ms", "retention.bytes", "cleanup.policy")}
    assert len(found[samples].partitions) == 1
    assert kept == {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}


def test_topics_that_are_not_copartitioned(settings: dict[str, str]) -> None:
    """``topics create`` and a worker refuse input topics with different numbers of partitions, and name them."""
    admin = AdminClient({"bootstrap.servers": settings["SEGMENTER_BROKER"]})
    purchases, signups = settings["SEGMENTER_PURCHASES_TOPIC"], settings["SEGMENTER_SIGNUPS_TOPIC"]
    admin.create_topics([NewTopic(purchases, 2, 1)])[purchases].result(10)
    said = _fails(settings, "topics", "create", "--partitions", "4")
    assert f"{purchases} has 2" in said
    assert signups not in admin.list_topics(timeout=10).topics, "it created topics that do not fit"
    missing = _fails(settings, "worker")
    assert signups in missing
    assert "segmenter topics create" in missing
    assert purchases not in missing.partition("run: ")[0].partition("no topic")[2]
    others = [name for role, name in settings.items() if role.endswith("_TOPIC") and name != purchases]
    for created in admin.create_topics([NewTopic(name, 3, 1) for name in others]).values():
        created.result(10)
    for command in (("worker",), ("topics", "create")):
        said = _fails(settings, *command)
        assert f"{purchases} has 2" in said
        assert f"{signups} has 3" in said


def test_a_session_timeout_that_kafka_refuses(settings: dict[str, str]) -> None:
    """Brokers take no session timeout below 6 s unless told otherwise: the worker ends with a sentence."""
    output_of("topics", "create", settings=settings)
    said = _fails({**settings, "SEGMENTER_SESSION_TIMEOUT": "2", "SEGMENTER_STALL_AFTER": "8"}, "worker")
    assert said.count("segmenter: ") == 1
    assert "SEGMENTER_SESSION_TIMEOUT" in said.partition("segmenter: ")[2]


@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_message_of_many_that_kafka_refuses(kafka: RealKafka, place: int) -> None:
    """It is told, wherever it is: the acknowledgement of the last message on a partition stands for all before it."""
    topic = f"refused-{place}"
    admin = AdminClient({"bootstrap.servers": kafka.address})
    for created in admin.create_topics([NewTopic(topic, 3, 1, config={"max.message.bytes": "20000"})]).values():
        created.result(10)
    publisher = KafkaPublisher({"bootstrap.servers": kafka.address}, OutputTopics("-", topic, "-", "-"))
    fine: dict[str, bytes | None] = {f"c{number}": b"{}" for number in range(1000)}
    asyncio.run(asyncio.wait_for(publisher.publish_snapshots(fine), 30))
    large = {**fine, f"c{place}": random.Random(place).randbytes(60_000)}
    with pytest.raises(PublishRefused, match=r"Kafka refused a message for good: .*size too large"):
        asyncio.run(asyncio.wait_for(publisher.publish_snapshots(large), 30))
    with pytest.raises(PublishRefused):
        asyncio.run(asyncio.wait_for(publisher.publish_snapshots({"c1": b"{}"}), 30))
    publisher.close()


def _history() -> list[dict[str, Any]]:
    events = list(generate(Population(customers=400, days=300, seed=9)))
    return [*events, {"kind": "tick", "occurred_at": "2025-01-01T00:00:00Z"}]


def _agrees(events: list[dict[str, Any]], topics: Topics) -> None:
    seen = distinct(topics.changes())
    assert moves(seen) == moves(replay(events))
    assert next(out_of_order(seen), None) is None


def test_a_worker_outlives_its_broker(
    settings: dict[str, str], kafka: RealKafka, redis: RealRedis, tmp_path: Path
) -> None:
    """A broker that is killed and comes back interrupts a worker; nothing is lost, and what is repeated is the same."""
    output_of("topics", "create", settings=settings)
    events = _history()
    third = len(events) // 3
    with (
        Topics(kafka.address, prefix=f"{settings['SEGMENTER_GROUP']}.") as topics,
        stored(redis.url, settings["SEGMENTER_NAMESPACE"]) as state,
        Worker(tmp_path, {**settings, "SEGMENTER_BATCH_SIZE": "20"}) as worker,
    ):
        worker.ready()
        topics.put(events[:third])
        eventually(lambda: state.settled(topics), 30, "the first third is processed")
        topics.put(events[third : 2 * third])
        kafka.kill()
        kafka.start()
        topics.put(events[2 * third :])
        eventually(lambda: state.settled(topics), 60, "everything is processed")
        assert worker.process.running, worker.log
        _agrees(events, topics)
        code, seconds = worker.terminate(within=20)
        assert (code, seconds < 10) == (0, True), worker.log


def test_stops_when_kafka_has_deleted_what_must_be_read_again(
    settings: dict[str, str], kafka: RealKafka, redis: RealRedis, tmp_path: Path
) -> None:
    """Redis emptied and Kafka's beginning deleted: the worker ends with what the operator can do.

    With Redis as it was, deleted records that are in the state already do not matter.
    """
    output_of("topics", "create", settings=settings)
    events, purchases = _history(), settings["SEGMENTER_PURCHASES_TOPIC"]
    admin = AdminClient({"bootstrap.servers": kafka.address})
    with (
        Topics(kafka.address, prefix=f"{settings['SEGMENTER_GROUP']}.") as topics,
        stored(redis.url, settings["SEGMENTER_NAMESPACE"]) as state,
        Worker(tmp_path, settings) as worker,
    ):
        topics.put(events)
        eventually(lambda: state.settled(topics), 30, "everything is processed")
        assert worker.terminate(within=15)[0] == 0, worker.log
        for answer in admin.delete_records([TopicPartition(purchases, 1, 10)]).values():
            answer.result(10)
        worker.start().ready()
        assert worker.terminate(within=15)[0] == 0, worker.log
        end = state.offsets(1)["purchases"]
        for key in state.client.keys(f"*{settings['SEGMENTER_NAMESPACE']}*"):
            state.client.delete(key)
        worker.start()
        assert worker.exit_code(within=30) == 1, worker.log
        assert "Traceback" not in worker.log, worker.log
        sentence = worker.log.rpartition("segmenter: ")[2]
        assert f"{purchases}, partition 1" in sentence
        assert f"committed offset {end}" in sentence
        assert "below 10" in sentence
        assert "Restore Redis from a backup" in sentence
