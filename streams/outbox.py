"""Outbox: publishes committed entries in their order, removes them once acknowledged, and says how far that is.

Entries left over from an earlier owner come first. Removing an entry may fail: it is tried again with the next; if
there is none before the worker ends, it is published again at the next start, and consumers drop the repeated ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from models.events import Role
from models.instants import NEVER, SECOND
from streams import failpoints, metrics
from streams.aside import Aside
from streams.clock import CLOCK
from streams.commit import OutboxEntry, ShardCommit, ShardHeader
from streams.errors import StoreUnavailable
from streams.ports import Publisher, StateStore
from streams.snapshots import put_right

log = logging.getLogger(__name__)

#: Commits that may wait for the broker before the shard itself waits.
_MOST_WAITING: Final = 32
#: Changes and other messages of these at most, some kilobyte each: of a backlog one commit may have tens of thousands.
_MOST_MESSAGES: Final = 50_000
#: Entries sent before the first of them must be acknowledged.
_AT_ONCE: Final = 8


class _Item(NamedTuple):
    entry: OutboxEntry | None
    offsets: Mapping[Role, int]
    time: int
    oldest: int | None


class Outbox:
    """One shard's committed and not yet published entries."""

    def __init__(self, shard: int, store: StateStore, publisher: Publisher, aside: Aside) -> None:
        self._shard = shard
        self._store = store
        self._publisher = publisher
        self._aside = aside
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(_MOST_WAITING)
        self._task: asyncio.Task[None] | None = None
        #: Commits whose messages the broker has not acknowledged yet, and how many messages they have.
        self.pending = 0
        self._messages = 0
        self._room = asyncio.Event()
        #: When the broker last acknowledged something (monotonic seconds).
        self.last_progress = time.monotonic()
        #: What may have been published and has not been removed by us.
        self._unremoved: list[OutboxEntry] = []
        #: For each topic, the offset below which every change has been acknowledged by the broker.
        self.published: dict[Role, int] = {}
        #: Every deadline before this instant has been applied, and its change acknowledged by the broker.
        self.published_time = NEVER

    def start(self, header: ShardHeader) -> None:
        """Begin with what the store still holds."""
        self._queue = asyncio.Queue(max(_MOST_WAITING, len(header.entries) + 1))
        self.published = {}
        self.published_time = NEVER
        self.pending, self._messages = 0, sum(entry.size for entry in header.entries)
        # What is there still is published again. What another has removed may have been sent by us after it.
        there = {entry.id for entry in header.entries}
        self._unremoved = [entry for entry in self._unremoved if entry.id not in there]
        for entry in header.entries:
            self._queue.put_nowait(_Item(entry, {}, NEVER, None))
        settled = header.time if header.settled is None else header.settled
        self._queue.put_nowait(_Item(None, header.offsets, NEVER if settled is None else settled, None))
        self._count(len(header.entries) + 1)
        self._task = asyncio.create_task(self._run(), name=f"outbox-{self._shard}")

    async def stop(self, within: float) -> None:
        """Publish what waits for at most ``within`` seconds, then stop."""
        if self._task is None:
            return
        if within > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._queue.join(), within)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def put(self, commit: ShardCommit, oldest: int | None) -> None:
        """Publish a commit's entry, if it has one; ``oldest`` is the instant of its oldest record.

        Waits while too much is waiting already; one entry always may.
        """
        size = commit.entry.size if commit.entry is not None else 0
        while self._messages and self._messages + size > _MOST_MESSAGES:
            self._room.clear()
            await self._room.wait()
        self._messages += size
        offsets = {role: covered.end for role, covered in commit.ranges.items()}
        await self._queue.put(_Item(commit.entry, offsets, commit.settled, oldest))
        self._count(1)

    def failed(self) -> BaseException | None:
        """What ended publishing for good, if anything did."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    async def _run(self) -> None:
        if self._unremoved:
            await self._acknowledge()
        while True:
            items = [await self._queue.get()]
            while len(items) < _AT_ONCE and not self._queue.empty():
                items.append(self._queue.get_nowait())
            entries = [item.entry for item in items if item.entry is not None]
            if entries:
                self._unremoved += entries
                await self._publisher.publish(entries)
                failpoints.reached("before-acknowledge")
            # Removing a few together costs what removing one does.
            if self._unremoved and (self._queue.empty() or len(self._unremoved) >= _AT_ONCE):
                await self._acknowledge()
            now, self.last_progress = CLOCK.now(), time.monotonic()
            for item in items:
                self.published.update(item.offsets)
                self.published_time = max(self.published_time, item.time)
                if item.oldest is not None and item.entry is not None:
                    metrics.PUBLISH_LATENCY.observe(max(0.0, now - item.oldest / SECOND))
                self._queue.task_done()
            self._messages -= sum(entry.size for entry in entries)
            self._room.set()
            self._count(-len(items))

    def _count(self, more: int) -> None:
        self.pending += more
        metrics.OUTBOX_PENDING.labels(str(self._shard)).set(self.pending)

    async def _acknowledge(self) -> None:
        """Remove published entries; what cannot be removed now is removed with those of the next commit."""
        try:
            ids = [entry.id for entry in self._unremoved]
            size = sum(entry.size for entry in self._unremoved)
            if await self._aside.do(size, self._store.acknowledge, self._shard, ids) < len(ids):
                await put_right(self._store, self._publisher, self._shard, self._unremoved)
        except StoreUnavailable as error:
            log.warning("published changes stay in the outbox for now: %s", error)
        else:
            self._unremoved = []
