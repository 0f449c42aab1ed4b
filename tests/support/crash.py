"""The proof that a crash loses and doubles nothing: two workers, one killed half-way, everything compared."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.commands import SEGMENTER, Running, Worker, eventually, output_of
from tests.support.recordings import Recording
from tests.support.stored import Stored
from tests.support.topics import CHANGES, DEAD_LETTERS, Topics, distinct, moves, out_of_order


class _Started(Worker):
    """Started the way an operator does it."""

    forked = False


def survive_a_crash(
    recording: Recording, settings: Mapping[str, str], topics: Topics, state: Stored, rate: int, folder: Path
) -> None:
    """Produce the recording at ``rate`` events a second; kill a worker once a third of the changes are out.

    Then what subscribers have seen must be what a batch computation gives, and what Redis holds what a replay gives.
    """
    settings = {**settings, "SEGMENTER_CLOCK": "event"}
    if recording.policy is not None:
        settings["SEGMENTER_POLICY"] = str(recording.policy)
    produce = (*SEGMENTER, "produce", str(recording.file), "--until", recording.until, "--rate", str(rate))
    with _Started(folder, settings, "victim") as victim, _Started(folder, settings, "survivor") as survivor:
        victim.ready()
        survivor.ready()
        with Running(folder, settings, produce, "produce") as producer:
            third = recording.moves.total() // 3
            eventually(lambda: topics.size(CHANGES) >= third, 120, f"{third} changes published")
            victim.kill()
            killed_at = topics.size(CHANGES)
            victim.start()
            assert producer.exit_code(within=120) == 0, producer.log
        eventually(lambda: state.settled(topics), 90, "everything folded and published")
        assert killed_at < recording.moves.total(), "the kill came too late to show anything"
        victim.ready()
        _agrees_with_batch(recording, topics, state)
        _agrees_with_replay(recording, settings, folder)
        for worker in (victim, survivor):
            code, seconds = worker.terminate(within=15)
            assert (code, seconds < 10) == (0, True), f"{code} after {seconds:.1f} s:\n{worker.log}"
            assert "Traceback" not in worker.log, worker.log


def _agrees_with_batch(recording: Recording, topics: Topics, state: Stored) -> None:
    consumed = topics.changes()
    seen = distinct(consumed)
    found = moves(seen)
    assert found == recording.moves, (
        f"{(recording.moves - found).total()} missing, {(found - recording.moves).total()} too many; "
        f"missing: {list(recording.moves - found)[:5]}, too many: {list(found - recording.moves)[:5]}"
    )
    assert next(out_of_order(seen), None) is None
    assert state.unpublished() == 0
    assert topics.size(DEAD_LETTERS) == 0


def _agrees_with_replay(recording: Recording, settings: Mapping[str, str], folder: Path) -> None:
    out = folder / "replayed.ndjson"
    policy = () if recording.policy is None else ("--policy", str(recording.policy))
    until = ("--until", recording.until)
    output_of("replay", str(recording.file), *policy, *until, "--customers", str(out), settings=settings)
    exported = output_of("export", settings=settings)
    assert sorted(exported.splitlines()) == sorted(out.read_text().splitlines())
    customers = [json.loads(line) for line in exported.splitlines()]
    assert _sizes(output_of("segments", "--json", settings=settings)) == _counted(customers)


def _sizes(lines: str) -> dict[tuple[str, str], tuple[int, int]]:
    """``segments --json`` as dimension and segment → customers and revenue in cents; empty segments left out."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
    return {
        (row["dimension"], row["segment"]): (row["customers"], round(float(row["revenue"]) * 100))
        for row in rows
        if row["customers"]
    }


def _counted(customers: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, int]]:
    size: Counter[tuple[str, str]] = Counter()
    revenue: Counter[tuple[str, str]] = Counter()
    for customer in customers:
        for dimension, label in customer["segments"].items():
            if label is not None:
                size[dimension, label] += 1
                revenue[dimension, label] += round(float(customer["net"]) * 100)
    return {segment: (size[segment], revenue[segment]) for segment in size}
