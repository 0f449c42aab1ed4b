"""Segments of Online Retail II's customers at every month's end equal a batch computation with pandas.

Refunds, redeliveries and events of nobody are among the events. One replay is kept in a real Redis, so that what is
compared is what Redis holds and what `segmenter export` says.
"""

from pathlib import Path
from typing import Any

import orjson
import pytest

from models.policy import Policy, default_policy_text, parse_policy
from streams.recorded import RecordedEvent, read_recorded
from streams.store.redis import RedisStore
from tests.e2e.batch import frame, labels, month_ends
from tests.e2e.month_by_month import assert_labels, in_force, run
from tests.support.commands import output_of
from tests.support.real_redis import RealRedis

COLUMNS = ["region", "rfm", "value", "spend", "pace"]


def pounds() -> Policy:
    """The default policy in pounds."""
    return parse_policy(default_policy_text().replace('base = "USD"', 'base = "GBP"'))


@pytest.fixture(scope="module")
def recorded(data_folder: Path) -> list[RecordedEvent]:
    """Everything that was recorded, merged by time."""
    names = ("orders", "redelivered", "anonymous")
    return list(read_recorded([str(data_folder / f"or2_{name}.ndjson.gz") for name in names]))


@pytest.fixture(scope="module")
def ends() -> list[int]:
    """The ends of Online Retail II's 25 months."""
    return month_ends("2010-01-01", "2012-01-01")


def test_what_redis_holds_at_month_ends(
    recorded: list[RecordedEvent], ends: list[int], redis: RealRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the default policy, Redis holds pandas' labels at every month's end; export writes them at the last."""
    store = RedisStore(redis.url, "segmenter")
    store.register(1, "segmenter")
    monkeypatch.setattr("streams.replay.MemoryStore", lambda: store)
    events = frame([event.value for event in recorded])
    for instant, result, activations in run(pounds(), recorded, ends, 1):
        assert_labels(result, events, instant, activations, COLUMNS)
    scores = in_force(activations, instant).cutoffs.scores
    wanted = labels(events, instant, scores["rfm"], scores["value"])[COLUMNS]
    exported = output_of("export", settings={"SEGMENTER_REDIS": redis.url})
    customers: list[dict[str, Any]] = [orjson.loads(line) for line in exported.splitlines()]
    found = {customer["customer_id"]: [customer["segments"][name] for name in COLUMNS] for customer in customers}
    assert found == dict(zip(wanted.index, wanted.to_numpy().tolist(), strict=True))
    assert len(set(wanted["region"])) > 8
    store.close()


def test_four_shards_at_month_ends(recorded: list[RecordedEvent], ends: list[int]) -> None:
    """The same of a replay on four shards."""
    events = frame([event.value for event in recorded])
    for instant, result, activations in run(pounds(), recorded, ends, 4):
        assert_labels(result, events, instant, activations, COLUMNS)
