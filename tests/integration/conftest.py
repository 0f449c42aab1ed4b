"""A scene that several tests look at: a stack and a worker that has processed events, good and bad."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from models.partitioner import partition_of
from streams.embedded.stack import EmbeddedStack
from streams.errors import ServiceUnavailable
from streams.generator import Population, generate
from streams.settings import Settings
from tests.support.commands import Worker, eventually
from tests.support.stored import Stored, stored
from tests.support.topics import Topics

UNTIL = "2025-01-31T00:00:00Z"
ERASED = "c000001"


class Bad(NamedTuple):
    """A record that cannot be used, and the code it must be refused with."""

    code: str
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


def _purchase(**fields: Any) -> bytes:
    event = {
        "event_id": "bad",
        "kind": "purchase",
        "customer_id": "c-bad",
        "order_id": "o-bad",
        "occurred_at": "2024-03-01T00:00:00Z",
        "amount": "5.00",
        "currency": "USD",
        **fields,
    }
    return json.dumps({name: value for name, value in event.items() if value is not ...}).encode()


HOME = partition_of(b"c-bad", 4)
BAD = (
    Bad("wrong_key", "purchases", HOME, b"somebody", _purchase(), (("trace", b"t-1"), ("empty", None))),
    Bad("wrong_key", "purchases", HOME, None, _purchase()),
    Bad("wrong_partition", "purchases", (HOME + 1) % 4, b"c-bad", _purchase()),
    Bad("invalid_json", "purchases", 0, b"\xfe\xff", b"\x00\x80 garbage", (("raw", b"\x81"), ("text", b"plain"))),
    Bad("invalid_json", "signups", 2, b"c-bad", b"[1, 2]"),
    Bad("invalid_json", "purchases", HOME, b"c-bad", _purchase() + b"," + _purchase()),
    Bad("missing_field", "purchases", HOME, b"c-bad", _purchase(amount=...)),
    Bad("invalid_field", "purchases", HOME, b"c-bad", _purchase(amount="-5.00")),
    Bad("invalid_field", "erasures", HOME, b"c-bad", b'{"event_id":"x","customer_id":"c-bad","occurred_at":"today"}'),
    Bad("unknown_currency", "purchases", HOME, b"c-bad", _purchase(currency="XXX")),
    Bad("occurred_ahead", "purchases", HOME, b"c-bad", _purchase(occurred_at="2999-01-01T00:00:00Z")),
    Bad("empty_value", "purchases", HOME, b"c-bad", None),
)


@dataclass(frozen=True)
class Scene:
    """What there is to look at. ``before_ready`` is what /readyz answered before the worker owned its shards."""

    settings: dict[str, str]
    topics: Topics
    state: Stored
    worker: Worker
    events: list[dict[str, Any]]
    before_ready: int


def _events() -> list[dict[str, Any]]:
    """A year of customers and the erasure of one of them, then a tick."""
    events = list(generate(Population(customers=150, days=365, seed=5)))
    assert any(event["customer_id"] == ERASED for event in events)
    erasure = {"event_id": "x-1", "kind": "erasure", "customer_id": ERASED, "occurred_at": "2025-01-30T00:00:00Z"}
    return [*events, erasure, {"kind": "tick", "occurred_at": UNTIL}]


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A worker that has processed a year of customers, an erasure, and records of every kind that is refused."""
    folder = tmp_path_factory.mktemp("scene")
    try:
        with (
            EmbeddedStack(Settings()) as stack,
            Topics(stack.broker.address) as topics,
            stored(stack.redis.url) as state,
        ):
            settings = {**stack.environment(), "SEGMENTER_CLOCK": "event"}
            with Worker(folder, settings) as worker:
                eventually(lambda: worker.address, 30, "the worker's HTTP listens")
                before_ready, _ = worker.get("/readyz")
                worker.ready()
                events = _events()
                for bad in BAD:
                    topics.send(bad.topic, bad.value, bad.key, bad.partition, bad.headers)
                topics.put(events)
                eventually(lambda: state.settled(topics), 40, "everything is processed")
                yield Scene(settings, topics, state, worker, events, before_ready)
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))
