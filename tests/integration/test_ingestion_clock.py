"""The ingestion clock: lapses come by themselves and soon, and a backlog is no silence of the customers in it.

The policy's durations are seconds here. The stories run at the same time, for most of them is waiting.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from models.instants import SECOND, format_instant, parse
from streams.embedded.stack import EmbeddedStack
from streams.settings import Settings
from tests.support.commands import Worker, eventually
from tests.support.stored import Stored, stored
from tests.support.together import Told, telling
from tests.support.topics import CHANGES, TOPIC_OF_KIND, Topics, distinct, out_of_order

POTENTIAL_AFTER, LAPSE_AFTER = 2.0, 4.0
#: How late a change may be published, on a busy machine.
SOON = 2.0


@contextmanager
def _fleet(folder: Path, lapse_after: int = int(LAPSE_AFTER)) -> Iterator[tuple[Worker, Topics, Stored]]:
    """A worker that has yet to be started, its topics and its Redis."""
    policy = folder / "policy.toml"
    policy.write_text(
        "version = 1\n[dimensions.lifecycle]\n"
        f'engine = "lifecycle"\npotential_after = "{POTENTIAL_AFTER:.0f}s"\nlapse_after = "{lapse_after}s"\n'
    )
    with (
        EmbeddedStack(Settings()) as stack,
        Topics(stack.broker.address) as topics,
        stored(stack.redis.url) as state,
    ):
        settings = {
            **stack.environment(),
            "SEGMENTER_POLICY": str(policy),
            "SEGMENTER_CLOCK": "ingestion",
            "SEGMENTER_SESSION_TIMEOUT": "3",
            "SEGMENTER_BATCH_SIZE": "100",
        }
        worker = Worker(folder, settings)
        try:
            yield worker, topics, state
        finally:
            worker.__exit__(None, None, None)


def _event(kind: str, customer: str, number: int, at: float) -> dict[str, Any]:
    event = {
        "event_id": f"{kind}-{customer}-{number}",
        "kind": kind,
        "customer_id": customer,
        "occurred_at": format_instant(round(at * SECOND)),
    }
    if kind == "purchase":
        event |= {"order_id": f"o-{customer}-{number}", "amount": "10.00", "currency": "USD"}
    return event


def _put(topics: Topics, events: list[dict[str, Any]], at: float) -> None:
    """Produce events whose records bear the timestamp ``at``, as if they had lain there since."""
    for event in events:
        value, key = json.dumps(event).encode(), event["customer_id"].encode()
        topics.send(TOPIC_OF_KIND[event["kind"]], value, key, timestamp=round(at * 1000))
    topics.flush()


def _told(topics: Topics) -> list[tuple[dict[str, Any], float]]:
    """Each change with how many seconds after its effective_at it was published."""
    return [
        (change, record.timestamp / 1000 - parse(change["effective_at"]) / SECOND)
        for record in topics.read(CHANGES)
        for change in [json.loads(record.value or b"null")]
    ]


def _story_of(changes: list[Any], customer: str) -> list[tuple[str | None, str | None, str]]:
    return [(c["from"], c["to"], c["cause"]) for c in changes if c["customer_id"] == customer]


def lapses_come_by_themselves(folder: Path) -> None:
    """A purchase is told at once; potential and lapsed follow when they are due, without any further event."""
    with _fleet(folder) as (worker, topics, _):
        worker.start().ready()
        now = time.time()
        customers = range(8)
        topics.put(_event("signup", f"s-{n}", 1, now) for n in customers)
        topics.put(_event("purchase", f"p-{n}", 1, now) for n in customers)
        eventually(lambda: topics.size(CHANGES) == len(customers) * 5, 20, "every change is published")
        told = _told(topics)
        changes = [change for change, _ in told]
        assert next(out_of_order(changes), None) is None
        for n in customers:
            signed_up = [(None, "new", "signup"), ("new", "potential", "time"), ("potential", "lapsed", "time")]
            assert _story_of(changes, f"s-{n}") == signed_up
            assert _story_of(changes, f"p-{n}") == [(None, "new", "purchase"), ("new", "lapsed", "time")]
        due = {"new": now, "potential": now + POTENTIAL_AFTER, "lapsed": now + LAPSE_AFTER}
        for change, late in told:
            assert abs(parse(change["effective_at"]) / SECOND - due[change["to"]]) < 0.001
            assert 0 <= late < SOON, f"{change} came {late:.2f} s late"
            assert not change["backfill"]
        assert max(late for change, late in told if change["cause"] != "time") < SOON
        time.sleep(1.0)
        assert topics.size(CHANGES) == len(changes), "a change came twice"


def a_backlog_is_no_silence(folder: Path) -> None:
    """What is read long after it happened is decided as if it had been read at once."""
    lapse_after = 60
    with _fleet(folder, lapse_after) as (worker, topics, state):
        now = time.time()
        first, second = now - 150, now - 150 + lapse_after - 5
        everyone = [f"c-{n}" for n in range(1000)]
        _put(topics, [_event("purchase", customer, 1, first) for customer in everyone], first)
        # Others fill the log between the two purchases, so that they are not fetched or folded together.
        for part in range(10):
            at = first + part
            _put(topics, [_event("purchase", f"other-{part}-{n}", 1, at) for n in range(200)], at)
        _put(topics, [_event("purchase", customer, 2, second) for customer in everyone], second)
        worker.start()
        eventually(lambda: state.settled(topics), 40, "the backlog is read")
        eventually(lambda: topics.size(CHANGES) == 2 * (len(everyone) + 2000), 20, "every change is published")
        changes = distinct(topics.changes())
        lapses = {c["customer_id"]: c["effective_at"] for c in changes if c["to"] == "lapsed"}
        due = format_instant(round((second + lapse_after) * SECOND))
        for customer in everyone:
            assert _story_of(changes, customer) == [(None, "new", "purchase"), ("new", "lapsed", "time")]
            assert lapses[customer] == due


def an_unread_purchase_prevents_a_lapse(folder: Path) -> None:
    """A worker that starts after a lapse fell due first reads the purchase that came before it, behind a backlog."""
    lapse_after, customers = 30, [f"c-{n}" for n in range(300)]
    with _fleet(folder, lapse_after) as (worker, topics, state):
        worker.start().ready()
        due = time.time() + 6
        _put(topics, [_event("purchase", customer, 1, due - lapse_after) for customer in customers], due - lapse_after)
        eventually(lambda: state.settled(topics), 5, "the first purchases are read")
        worker.kill()
        for part in range(10):
            at = due - 2 + part / 10
            _put(topics, [_event("purchase", f"other-{part}-{n}", 1, at) for n in range(200)], at)
        _put(topics, [_event("purchase", customer, 2, due - 0.5) for customer in customers], due - 0.5)
        time.sleep(max(0.0, due + 0.5 - time.time()))
        worker.start().ready()
        eventually(lambda: state.settled(topics), 20, "the second purchases are read")
        time.sleep(1.0)
        told = Counter((change["to"], change["cause"]) for change in topics.changes())
        assert told == {("new", "purchase"): len(customers) + 2000}


def a_rewind_gives_the_same_history(folder: Path) -> None:
    """Redis emptied: the same changes with the same ids come again, lapses too, and all of them as history."""
    with _fleet(folder) as (worker, topics, state):
        worker.start().ready()
        for n in range(30):
            topics.put([_event("signup", f"c-{n}", 1, time.time()), _event("signup", f"s-{n}", 1, time.time())])
            topics.put([_event("purchase", f"c-{n}", 1, time.time())])
            time.sleep(0.03)
        eventually(lambda: topics.size(CHANGES) == 30 * 5, 20, "every change is published")
        time.sleep(1.5)
        assert worker.terminate(within=15)[0] == 0, worker.log
        first, ends = topics.changes(), topics.ends(CHANGES)
        assert not any(change["backfill"] for change in first)
        state.client.flushall()
        worker.start().ready()
        eventually(lambda: topics.size(CHANGES) >= 30 * 10, 20, "every change is published again")
        again = [json.loads(record.value or b"null") for record in topics.read(CHANGES, ends)]
        told = {change["change_id"]: (change["customer_id"], change["sequence"]) for change in first}
        assert {change["change_id"]: (change["customer_id"], change["sequence"]) for change in again} == told
        assert [(c["customer_id"], c["to"], c["cause"]) for c in again if not c["backfill"]] == []


STORIES = (
    an_unread_purchase_prevents_a_lapse,
    a_rewind_gives_the_same_history,
    lapses_come_by_themselves,
    a_backlog_is_no_silence,
)

told = telling(STORIES, at_once=2)


@pytest.mark.slow
@pytest.mark.parametrize("story", [story.__name__ for story in STORIES])
def test_ingestion_clock(story: str, told: Told) -> None:
    """The story comes out as it says it does."""
    told[story].result()
