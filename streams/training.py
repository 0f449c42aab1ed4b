"""Training: learning clusters, on the worker that Kafka gives partition 0 of the samples topic to.

Learning runs in a thread beside the shards and never holds them up. Whatever fails, the learners are loaded again and
the topic is read from the stored offset; while they cannot be loaded, customers keep the clusters they are in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from faust.types import TP

from models.batch import Record
from models.clusters import ClusterModel
from models.errors import SegmenterError, StateError
from models.instants import SECOND, format_instant
from streams import metrics
from streams.commit import Range
from streams.errors import LostBatch, Recoverable
from streams.kafka.transport import LogRange, Progress
from streams.ports import StateStore
from streams.reading import unread
from streams.settings import Settings
from streams.store.keys import clusters_key
from streams.trainer import Trainer

log = logging.getLogger(__name__)

#: The topic has one partition. Where a broker gave it more, as embedded ones do, the others stay empty.
PARTITION: Final = 0
#: Fetches that may wait; each is as large as a fetch may be, about a megabyte.
_MOST_WAITING: Final = 16
#: Seconds.
_FIRST_RETRY: Final = 0.2
_LAST_RETRY: Final = 5.0

#: Load the learners again and position the topic, if it is still ours.
Reload = Callable[[], Awaitable[None]]


class Training:
    """See the module. A worker has one, which learns only while the partition is its own."""

    def __init__(self, store: StateStore, reload: Reload, settings: Settings) -> None:
        self._store = store
        self._reload = reload
        self._settings = settings
        self.tp: Final = TP(settings.samples_topic, PARTITION)
        self._trainer = Trainer(store)
        self._waiting: deque[tuple[Range, Sequence[Record]]] = deque()
        self._next = 0
        self._work = asyncio.Event()
        self._failure: Exception | None = None
        self._damaged = False
        self._told = ""
        self._pause = _FIRST_RETRY
        self._reported: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def ours(self) -> bool:
        """Whether this worker learns."""
        return self._task is not None

    async def assigned(self, logs: Mapping[TP, LogRange]) -> Mapping[TP, int]:
        """Take exactly these partitions of the topic. Returns where each is to be read from.

        Learners that cannot be loaded are told and looked at again later: shards do not wait for them.
        """
        positions = {tp: log.end for tp, log in logs.items()}
        if self.tp not in logs:
            await self.stop(self._settings.stop_within / 4)
        elif not self.ours:
            self._trainer = Trainer(self._store)
            try:
                positions[self.tp] = await self.load(logs[self.tp])
            except (StateError, Recoverable) as error:
                self._fail(error)
            else:
                self.resume(positions[self.tp])
            self._task = asyncio.create_task(self._run(), name="training")
        elif self._failure is None:
            positions[self.tp] = self._next
        return positions

    async def load(self, kept: LogRange) -> int:
        """Load the learners and say where to read on. Raises StoreUnavailable or StateError."""
        stored = await asyncio.to_thread(self._trainer.load)
        start = kept.first if stored is None else stored
        if not kept.first <= start <= kept.end:
            log.warning(
                "%s: learning stands at offset %d, and Kafka holds [%d, %d); going on with the first there is",
                *(self.tp.topic, start, kept.first, kept.end),
                extra={"action": "samples_missing"},
            )
            start = kept.first
        log.info("learning clusters from offset %d of %s", start, self.tp.topic, extra={"action": "training"})
        return start

    def resume(self, start: int) -> None:
        """Go on from learners that have just been loaded; the topic is positioned."""
        self._waiting.clear()
        self._next = start
        if self._damaged:
            self._mended()
        self._failure = None

    async def stop(self, within: float) -> None:
        """Learn no longer; what is being learned may end within so many seconds, or else is learned again."""
        task, self._task = self._task, None
        if task is None:
            return
        self._work.set()
        if self._failure is None:
            await asyncio.wait([task], timeout=within)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._waiting.clear()
        self._failure = None
        self._mended()
        for name in self._reported:
            metrics.forget_model(name)
        self._reported = set()
        metrics.CONSUMER_LAG.remove_by_labels({"topic": self.tp.topic})

    @property
    def full(self) -> bool:
        """Whether more has been fetched than should wait."""
        return len(self._waiting) > _MOST_WAITING

    @property
    def offset(self) -> int | None:
        """The store's offset: what lies below it has been learned."""
        return self._trainer.offset if self.ours else None

    def fetched(self, covered: Range, records: Sequence[Record]) -> None:
        """Add one fetch. What overlaps is trimmed; what leaves a gap makes the learners load again."""
        if not self.ours or self._failure is not None or covered.end <= self._next:
            return
        try:
            records = unread(self.tp.topic, self._next, covered, records)
        except LostBatch as error:
            self._fail(error)
            return
        self._waiting.append((Range(self._next, covered.end), records))
        self._next = covered.end
        self._work.set()

    def watch(self, progress: Progress | None, dimensions: Collection[str]) -> None:
        """Called regularly: report the lag, and the models of the dimensions that there are."""
        if not self.ours:
            return
        if progress is not None:
            behind = max(0, progress.end - self._next) + sum(len(records) for _, records in self._waiting)
            metrics.CONSUMER_LAG.labels(self.tp.topic, str(PARTITION)).set(behind)
        models = {name: state.model for name, state in self._trainer.learners.items() if name in dimensions}
        for name in self._reported - models.keys():
            metrics.forget_model(name)
        self._reported = set(models)
        for name, model in models.items():
            if model is not None:
                self._report(name, model)

    @staticmethod
    def _report(name: str, model: ClusterModel) -> None:
        metrics.MODEL_VERSION.labels(name).set(model.version)
        metrics.MODEL_AS_OF.labels(name).set(model.as_of / SECOND)
        metrics.SAMPLES.labels(name).set(model.samples)
        metrics.QUANTISATION_ERROR.labels(name).set(model.error)
        metrics.SILHOUETTE.labels(name).set(model.silhouette)
        for code, share in enumerate(model.shares, start=1):
            metrics.SHARE.labels(name, f"c{code}").set(share)

    async def _run(self) -> None:
        while self.ours:
            try:
                if self._failure is not None:
                    await self._reload()
                elif self._waiting:
                    await self._learn()
                else:
                    await self._work.wait()
                    self._work.clear()
            except Exception as error:
                # Not even a bug in learning may stop what does not need it.
                self._fail(error)
                if self.ours:
                    await self._rest()

    async def _learn(self) -> None:
        covered, records = self._waiting[0]
        before = self._trainer.learners
        values, offsets = [record.value for record in records], [record.offset for record in records]
        lesson = await asyncio.to_thread(self._trainer.learn, *covered, values, offsets)
        if not self.ours:
            return
        self._waiting.popleft()
        self._mended()
        metrics.EVENTS.labels(self.tp.topic, "used").inc(len(values) - len(lesson.refused))
        metrics.EVENTS.labels(self.tp.topic, "refused").inc(len(lesson.refused))
        for (name, as_of), model in lesson.models.items():
            if model is not None:
                log.info(
                    "%s: version %d as of %s has learned %d samples, quantisation error %.3f, silhouette %.3f",
                    *(name, model.version, format_instant(as_of), model.samples, model.error, model.silhouette),
                    extra={"action": "model", "dimension": name, "version": model.version},
                )
        for name, state in self._trainer.learners.items():
            known = before.get(name)
            if known is not None and state.drifts > known.drifts:
                metrics.DRIFTS.labels(name).inc(state.drifts - known.drifts)
                log.warning(
                    "%s: drift, customers are farther from their clusters than they used to be; learning faster for a "
                    "while",
                    name,
                    extra={"action": "drift", "dimension": name},
                )

    def _fail(self, error: Exception) -> None:
        """Learn nothing until the learners have been loaded again."""
        self._failure = error
        self._work.set()
        if isinstance(error, Recoverable):
            if isinstance(error, LostBatch):
                metrics.REFUSED_COMMITS.labels("lost_batch").inc()
            log.warning("%s; loading the learners again", error, extra={"action": "reload"})
            return
        self._damaged = isinstance(error, StateError)
        metrics.TRAINER_FAILED.set(1)
        if repr(error) != self._told:
            self._told = repr(error)
            what, ours = str(error), isinstance(error, SegmenterError)
            if self._damaged:
                key = clusters_key(self._settings.namespace)
                what += f" of the Redis key {key}; restore it, or remove it to learn anew (docs/STATE.md)"
            elif not ours:
                what = f"{error!r}; this is a bug in segmenter, or the installation is broken"
            log.error(
                "clusters are not learned, while everything else goes on: %s. Trying again every %g s",
                *(what, _LAST_RETRY),
                exc_info=None if ours else error,
                extra={"action": "training_failed"},
            )

    def _mended(self) -> None:
        self._damaged, self._told, self._pause = False, "", _FIRST_RETRY
        metrics.TRAINER_FAILED.set(0)

    async def _rest(self) -> None:
        """Wait before the next try, but not longer than until the end."""
        self._work.clear()
        if self._damaged:
            self._pause = _LAST_RETRY
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._work.wait(), self._pause)
        self._pause = min(self._pause * 2, _LAST_RETRY)
