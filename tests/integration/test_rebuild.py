"""``rebuild`` on a running worker: state is the same, and nothing is told twice."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streams.embedded.stack import EmbeddedStack
from streams.errors import ServiceUnavailable
from streams.generator import Population, generate
from streams.replay import replay
from streams.settings import Settings, read_policy
from tests.support import in_process
from tests.support.commands import SEGMENTER, Running, Worker, eventually
from tests.support.recordings import LIFECYCLE
from tests.support.stored import Stored, stored
from tests.support.topics import CHANGES, Topics, moves, out_of_order

UNTIL = "2025-01-31T00:00:00Z"
NOVEMBER = "2024-11-15T00:00:00Z"


class Stage(NamedTuple):
    """A fleet to be worked on."""

    settings: dict[str, str]
    topics: Topics
    state: Stored
    worker: Worker


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A worker that commits often, so that a rebuild takes a while."""
    try:
        with (
            EmbeddedStack(Settings()) as stack,
            Topics(stack.broker.address) as topics,
            stored(stack.redis.url) as state,
        ):
            settings = {
                **stack.environment(),
                "SEGMENTER_CLOCK": "event",
                "SEGMENTER_POLICY": str(LIFECYCLE),
                "SEGMENTER_SESSION_TIMEOUT": "3",
                "SEGMENTER_BATCH_SIZE": "2",
            }
            with Worker(tmp_path, settings) as worker:
                yield Stage(settings, topics, state, worker.ready())
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))


def _customers(stage: Stage) -> list[str]:
    return sorted(in_process.output("export", settings=stage.settings).splitlines())


def _rebuilt(stage: Stage) -> bool:
    """Whether every shard is back at where it was."""
    marks = [stage.state.client.hgetall(f"{{segmenter:{shard}}}:shard") for shard in range(4)]
    return all(
        int(mark[b"offset:" + role]) >= int(mark[b"silent:" + role])
        for mark in marks
        for role in (b"purchases", b"signups", b"erasures")
    )


def test_a_rebuild_of_a_running_fleet(stage: Stage, tmp_path: Path) -> None:
    """Rebuilt while events come and the worker is killed: what was told is not told again, what is new is told once."""
    events: list[dict[str, Any]] = list(generate(Population(customers=150, days=380, seed=5)))
    erasures = [
        {"event_id": f"x-{i}", "kind": "erasure", "customer_id": f"c00000{i}", "occurred_at": NOVEMBER} for i in (1, 2)
    ]
    events = sorted([*events, *erasures], key=lambda event: event["occurred_at"])
    cut = len(events) * 4 // 5
    tick = {"kind": "tick", "occurred_at": UNTIL}
    stage.topics.put([*events[:cut], {**tick, "occurred_at": events[cut - 1]["occurred_at"]}])
    eventually(lambda: stage.state.settled(stage.topics), 40, "the beginning is processed")
    before, told = _customers(stage), stage.topics.size(CHANGES)

    assert "--yes" in in_process.refused("rebuild", settings=stage.settings)
    assert _customers(stage) == before

    in_process.output("rebuild", "--yes", "--no-wait", settings=stage.settings)
    eventually(lambda: stage.state.client.hlen("{segmenter:0}:customers") > 0, 20, "the worker has noticed")
    assert not _rebuilt(stage), "the rebuild was too quick to show anything"
    stage.worker.kill()
    stage.worker.start()
    assert stage.topics.size(CHANGES) == told
    assert "going on with it" in in_process.output("rebuild", settings=stage.settings)
    assert _rebuilt(stage)
    assert (_customers(stage), stage.topics.size(CHANGES)) == (before, told)

    with Running(tmp_path, stage.settings, (*SEGMENTER, "rebuild", "--yes"), "rebuild") as rebuild:
        eventually(lambda: not _rebuilt(stage), 20, "it has begun again")
        stage.topics.put([*events[cut:], tick])
        assert rebuild.exit_code(within=30) == 0, rebuild.log + stage.worker.log[-3000:]
    eventually(lambda: stage.state.settled(stage.topics), 40, "everything is processed")
    changes = stage.topics.changes()
    assert moves(changes) == moves(replay([*events, tick], policy=read_policy(LIFECYCLE)))
    assert max(Counter(change["change_id"] for change in changes).values()) == 1
    erased = {erasure["customer_id"] for erasure in erasures}  # their sequence starts again
    assert next(out_of_order(each for each in changes if each["customer_id"] not in erased), None) is None
    assert "Traceback" not in stage.worker.log
