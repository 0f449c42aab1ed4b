"""The audit of a running fleet: nothing is found under load, and damage is found where it was done."""

import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.embedded.stack import EmbeddedStack
from streams.errors import ServiceUnavailable
from streams.generator import Population, generate
from streams.settings import Settings
from tests.support.commands import Worker, eventually, segmenter
from tests.support.stored import Stored, stored
from tests.support.topics import Topics

pytestmark = pytest.mark.slow

_ORDERS = 32


@pytest.fixture
def stack() -> Iterator[EmbeddedStack]:
    try:
        with EmbeddedStack(Settings()) as running:
            yield running
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))


def _verify(settings: dict[str, str], *options: str) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    done = segmenter("verify", "--json", *options, settings=settings)
    said = done.stderr.decode()
    assert "Traceback" not in said, said
    *findings, last = [json.loads(line) for line in done.stdout.splitlines()] or [{"summary": {"said": said}}]
    return done.returncode, findings, last["summary"]


def _damage(state: Stored, shard: int, customer: bytes) -> None:
    key = f"{{segmenter:{shard}}}:customers"
    row = state.client.hget(key, customer)
    assert isinstance(row, bytes)
    (orders,) = struct.unpack_from("<I", row, _ORDERS)
    damaged = row[:_ORDERS] + struct.pack("<I", orders + 1) + row[_ORDERS + 4 :]
    state.client.hset(key, customer, damaged)


def test_verify_while_a_worker_goes_on(stack: EmbeddedStack, tmp_path: Path) -> None:
    """Under the default policy, with cut-offs and clusters, over an event stream that does not pause."""
    settings = {**stack.environment(), "SEGMENTER_CLOCK": "event"}
    events = list(generate(Population(customers=200, days=60, seed=11)))
    half = len(events) // 2
    with (
        Topics(stack.broker.address) as topics,
        stored(stack.redis.url) as state,
        Worker(tmp_path, settings) as worker,
    ):
        worker.ready()
        topics.put(events[:half])
        eventually(lambda: state.behind(topics) == 0, 30, "half of the events are in the state")
        done = threading.Event()

        def load() -> None:
            with Topics(stack.broker.address) as more:
                for at in range(half, len(events), 10):
                    more.put(events[at : at + 10])
                    if done.wait(0.05):
                        return

        producer = threading.Thread(target=load)
        producer.start()
        try:
            code, findings, summary = _verify(settings)
        finally:
            done.set()
            producer.join()
        assert (code, findings, summary["unverified"]) == (0, [], {})
        assert summary["events"] >= half * 0.9
        assert summary["changes"] > summary["customers"] > 0
        eventually(lambda: state.settled(topics), 30, "everything is processed")
        shard = 2
        customers = sorted(state.client.hkeys(f"{{segmenter:{shard}}}:customers"))  # type: ignore[type-var]
        _damage(state, shard, customers[0])
        state.client.hdel(f"{{segmenter:{shard}}}:customers", customers[1])
        code, findings, _ = _verify(settings, "--shard", str(shard))
        assert code == 3
        names = [customer.decode() for customer in customers]
        assert [(each["what"], each["customer_id"]) for each in findings] == [
            ("state", names[0]),
            ("missing", names[1]),
        ]
        assert "orders: " in findings[0]["sentence"]
        assert any(f"purchases/{shard}@" in line or f"signups/{shard}@" in line for line in findings[0]["why"])
