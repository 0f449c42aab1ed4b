"""``dead-letters retry`` on a real Kafka, which alone has transactions, and a running worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from models.partitioner import partition_of
from tests.support.commands import Worker, eventually
from tests.support.fleet import fleet
from tests.support.in_process import output
from tests.support.real_kafka import RealKafka
from tests.support.real_redis import RealRedis, RedisUnavailable
from tests.support.recordings import LIFECYCLE
from tests.support.topics import Stored, Topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NAME = "retrying"


class Stage(NamedTuple):
    """A fleet to be worked on."""

    settings: dict[str, str]
    topics: Topics
    worker: Worker


@pytest.fixture
def stage(kafka: RealKafka, tmp_path: Path) -> Iterator[Stage]:
    """A worker on topics of its own."""
    try:
        with RealRedis(aof=False) as redis, Topics(kafka.address, prefix=f"{NAME}.") as topics:
            settings = {
                **fleet(NAME),
                "SEGMENTER_BROKER": kafka.address,
                "SEGMENTER_REDIS": redis.url,
                "SEGMENTER_CLOCK": "event",
                "SEGMENTER_POLICY": str(LIFECYCLE),
            }
            output("topics", "create", settings=settings)
            with Worker(tmp_path, settings) as worker:
                yield Stage(settings, topics, worker.ready())
    except RedisUnavailable as unavailable:
        pytest.skip(str(unavailable))


def _purchase(number: int, customer: str, currency: str = "USD", **more: str) -> dict[str, Any]:
    return {
        "event_id": f"p-{number}",
        "kind": "purchase",
        "customer_id": customer,
        "order_id": f"o-{number}",
        "occurred_at": "2024-01-01T00:00:00Z",
        "amount": "10.00",
        "currency": currency,
        **more,
    }


def test_dead_letters_are_retried_once(stage: Stage) -> None:
    """On the partition their key belongs to, with the bytes and headers they had; those refused again are new ones."""
    wrong = (partition_of(b"ann", 4) + 1) % 4
    value = json.dumps(_purchase(1, "ann")).encode()
    stage.topics.send("purchases", value, b"ann", wrong, [("trace", b"\xff")])
    stage.topics.send("purchases", json.dumps(_purchase(2, "bob", "XXX")).encode(), b"bob")
    stage.topics.flush()
    eventually(lambda: len(stage.topics.dead_letters()) == 2, 20, "both are refused")
    dry = output("dead-letters", "retry", "--dry-run", settings=stage.settings)
    assert "wrong_partition" in dry
    assert "unknown_currency" in dry
    said = output("dead-letters", "retry", "--code", "wrong_partition", settings=stage.settings)
    assert said.strip() == "1 records retried: 1 wrong_partition"

    def again() -> list[Stored]:
        records = stage.topics.read("purchases")
        return [record for record in records if record.value == value and record.partition != wrong]

    eventually(again, 20, "the end of the transaction has come to the partition")
    (retried,) = again()
    assert (retried.partition, retried.key) == (partition_of(b"ann", 4), b"ann")
    assert dict(retried.headers) == {"trace": b"\xff", "segmenter-retry-of": f"{NAME}.purchases/{wrong}@0".encode()}
    eventually(lambda: len(stage.topics.changes()) > 0, 20, "it is used")
    said = output("dead-letters", "retry", settings=stage.settings)
    assert said.strip() == "1 records retried: 1 unknown_currency"
    eventually(lambda: sum(each is not None for each in stage.topics.dead_letters()) == 3, 20, "bob is refused again")
    letters = [json.loads(line) for line in output("dead-letters", "--json", settings=stage.settings).splitlines()]
    assert letters[-1]["headers"] == [["segmenter-retry-of", NAME + ".purchases/{}@0".format(partition_of(b"bob", 4))]]
    assert len(letters) == 3
    since = ("--since", "2024-01-01T00:00:00Z")
    assert "1 records would be" in output("dead-letters", "retry", "--dry-run", *since, settings=stage.settings)
