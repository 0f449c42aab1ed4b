"""Microseconds per event of each stage, in process, one stage after the other: nothing overlaps.

What only computes is measured in CPU time of its thread, so that other load on the machine does not count; what
waits for Redis or the broker in elapsed time.

The classes are the worker's own: BatchProcessor, RedisStore on a real Redis, KafkaPublisher on the embedded broker.
One shard, one topic. What is published is not read back, so the embedded broker may drop the oldest of it.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from models.events import ROLES, VALUES, Role
from models.instants import FOREVER, parse
from models.outcome import Outcome
from models.segmenter import Segmenter
from streams.activations import Activations
from streams.commit import OutboxEntry, Range
from streams.embedded.stack import EmbeddedStack
from streams.kafka.publisher import KafkaPublisher, OutputTopics
from streams.processor import BatchProcessor, Clock, Shard
from streams.settings import Settings
from streams.store.redis import RedisStore
from tests.bench.events import BenchRecord, generated_records
from tests.bench.policies import Compared, compared

#: Entries published together, as the outbox does when it is behind.
_AT_ONCE: Final = 8
_CDNOW: Final = Path(__file__).resolve().parents[3] / "shared" / "data" / "cdnow_purchases.ndjson.gz"

READ, VALIDATE = "read: validation, columns, key and partition", "— of it the JSON validation alone"
APPLY, REST = "fold: rounds, totals, labels, changes", "fold: rows packed, segment counts, the commit built"
COMMIT, PUBLISH, REMOVE = (
    "commit: one script in Redis",
    "publish: changes and snapshots, acknowledged",
    "outbox entry removed",
)
STAGES: Final = (READ, VALIDATE, APPLY, REST, COMMIT, PUBLISH, REMOVE)


@dataclass(frozen=True, slots=True)
class Workload:
    """Records of one partition, and the clock and the policy they are folded under."""

    name: str
    clock: Clock
    records: Sequence[BenchRecord]
    compared: Compared


@dataclass
class StageTimes:
    """Each repeat's seconds by stage, for one workload and batch size."""

    workload: str
    policy: str
    batch_size: int
    events: int
    changes: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    def micros(self, stage: str) -> list[float]:
        """Microseconds per event in each repeat."""
        return [1e6 * seconds / self.events for seconds in self.seconds[stage]]

    def totals(self) -> list[float]:
        """Microseconds per event of all stages together, in each repeat."""
        parts = [self.micros(stage) for stage in STAGES if stage != VALIDATE]
        return [sum(each) for each in zip(*parts, strict=True)]


def workloads(generated: int, most: int | None = None) -> list[Workload]:
    """So many generated events under the ingestion clock, and CDNOW's history, or ``most`` of it, where the data is.

    Each under the lifecycle alone and under the default policy.
    """
    sources = [("generated events", Clock.INGESTION, generated_records(generated))]
    if _CDNOW.is_file():
        with gzip.open(_CDNOW) as file:
            values = [line.strip() for line in islice(file, most)]
        sources.append(("CDNOW's purchases", Clock.EVENT, [_recorded(i, value) for i, value in enumerate(values)]))
    return [Workload(name, clock, records, policy) for name, clock, records in sources for policy in compared(records)]


def _recorded(offset: int, value: bytes) -> BenchRecord:
    event = orjson.loads(value)
    return BenchRecord(offset, parse(event["occurred_at"]) // 1000, event["customer_id"].encode(), value)


class _TimedSegmenter(Segmenter):
    """Notes how long it takes."""

    seconds = 0.0

    def apply(self, *args: Any, **kwargs: Any) -> Outcome:
        began = time.thread_time()
        try:
            return super().apply(*args, **kwargs)
        finally:
            _TimedSegmenter.seconds += time.thread_time() - began


class _TimedActivations(Activations):
    """Gives segmenters that note how long they take."""

    def segmenter(self, number: int, since: int) -> Segmenter:
        activation = self[number]
        return _TimedSegmenter(self.policy(activation.policy_version), activation, since)


def measure_stages(workload: Workload, batch_size: int, repeats: int) -> StageTimes:
    """Run a workload ``repeats`` times through all stages."""
    times = StageTimes(workload.name, workload.compared.name, batch_size, len(workload.records))
    settings = Settings()
    topics = OutputTopics(*settings.output_topics)
    with EmbeddedStack(settings) as stack:
        publisher = KafkaPublisher({"bootstrap.servers": stack.broker.address}, topics)
        for repeat in range(repeats):
            with closing(RedisStore(stack.redis.url, f"bench-{repeat}")) as store:
                asyncio.run(_repeat(workload, times, store, publisher))
        publisher.close()
        # Its producer must be gone before the broker, or it complains.
        del publisher
    return times


async def _repeat(workload: Workload, times: StageTimes, store: RedisStore, publisher: KafkaPublisher) -> None:
    role: Role = "purchases"
    settings = Settings()
    workload.compared.activate(store)
    activations = _TimedActivations(store, workload.compared.policy)
    processor = BatchProcessor(Shard(0, 1, settings.topics), activations, store, workload.clock)
    processor.load(dict.fromkeys(ROLES, 0), {})
    while (step := processor.follow()) is not None:
        processor.commit(step)
    validate = VALUES[role].validate_json
    spent = dict.fromkeys(STAGES, 0.0)
    waiting: list[OutboxEntry] = []
    changes = 0

    async def publish() -> None:
        began = time.perf_counter()
        await publisher.publish(waiting)
        spent[PUBLISH] += time.perf_counter() - began
        began = time.perf_counter()
        store.acknowledge(0, [entry.id for entry in waiting])
        spent[REMOVE] += time.perf_counter() - began
        waiting.clear()

    # The producer connects with its first message.
    await publisher.publish([OutboxEntry("0-warm-up", [], [])])
    for first in range(0, len(workload.records), times.batch_size):
        part = workload.records[first : first + times.batch_size]
        at = time.thread_time()
        batch, refusals = processor.read(role, part, FOREVER)
        read = time.thread_time()
        for record in part:
            validate(record.value or b"")
        validated = time.thread_time()
        applied = _TimedSegmenter.seconds
        step = processor.fold(batch, refusals, {role: Range(part[0].offset, part[-1].offset + 1)})
        folded = time.thread_time()
        applied = _TimedSegmenter.seconds - applied
        spent[READ] += read - at
        spent[VALIDATE] += validated - read
        spent[APPLY] += applied
        spent[REST] += folded - validated - applied
        began = time.perf_counter()
        processor.commit(step)
        spent[COMMIT] += time.perf_counter() - began
        changes += len(step.outcome.published)
        if refusals:
            raise RuntimeError(f"an event was refused: {refusals[0].reason}")
        if step.commit.entry is not None:
            waiting.append(step.commit.entry)
        if len(waiting) == _AT_ONCE:
            await publish()
    if waiting:
        await publish()
    times.changes = changes
    for stage, seconds in spent.items():
        times.seconds[stage].append(seconds)
