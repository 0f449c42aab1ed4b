"""ShardRunner: one shard between its assignment and its revocation: inbox, fold, commit, publish, in this order.

Only this task folds and commits. What fails or is refused is answered in one way, whatever it was: the table is
dropped, the shard is taken and loaded again, and its topics are read from the stored offsets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from models.batch import Record
from models.events import ROLES, Role
from models.instants import FOREVER, NEVER, SECOND
from streams import failpoints, metrics
from streams.aside import Aside
from streams.clock import CLOCK
from streams.commit import Range, ShardHeader
from streams.errors import LostBatch, PolicyChanged, Recoverable, StaleOwner
from streams.inbox import Batch, Beyond, Inbox
from streams.outbox import Outbox
from streams.pace import Pace
from streams.processor import BatchProcessor, Clock, Step
from streams.reading import Fetch, Seam, unread
from streams.reporting import Report
from streams.settings import Settings

log = logging.getLogger(__name__)

#: When the log of a topic was last seen to be read to its end (Unix seconds), None while it is not. The offset is
#: the end of what has been delivered.
Drained = Callable[[Role, int], float | None]
#: Take the shard again: load it, and position its topics. Called after a failure.
Reload = Callable[["ShardRunner"], Awaitable[None]]

_FIRST_RETRY: Final = 0.2
_LAST_RETRY: Final = 5.0
#: A worker that lost its shard waits a little longer, for the assignment that explains it.
_STALE_RETRY: Final = 1.0
#: How often a batch that waits for a lagging topic is looked at again, in seconds.
_BLOCKED_POLL: Final = 0.02
#: Seconds between the timestamp a producer gives a record and its arrival at the broker, at most.
_PRODUCER_DELAY: Final = 0.5


class ShardRunner:
    """See the module. ``fetched`` is called by agents, everything else by the shard's own task."""

    def __init__(
        self,
        processor: BatchProcessor,
        outbox: Outbox,
        aside: Aside,
        drained: Drained,
        reload: Reload,
        settings: Settings,
    ) -> None:
        self.processor: Final = processor
        self.outbox: Final = outbox
        self._aside = aside
        self._drained = drained
        self._reload = reload
        self._settings = settings
        self._inbox = Inbox(processor.clock)
        self._next: dict[Role, int] = {}
        self._seam = Seam({}, {})
        self._work = asyncio.Event()
        self._failure: Recoverable | None = None
        self._blocked_since: float | None = None
        self._overdue = False
        self._awaiting_since: float | None = None
        self._impatient = False
        #: The last instant of which cut-offs were taken without models.
        self._unlearned: int | None = None
        self._report = Report(processor)
        self._pace = Pace(settings.batch_size)
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.last_progress = time.monotonic()

    def start(self, header: ShardHeader) -> None:
        """Begin, with a table that has just been loaded."""
        self.resume(header)
        self._task = asyncio.create_task(self._run(), name=f"shard-{self.processor.shard.number}")

    def resume(self, header: ShardHeader) -> None:
        """Go on from a table that has just been loaded; the outbox must have been stopped."""
        self._inbox.clear()
        self._next = dict(header.offsets)
        self._seam = Seam(header.offsets, header.silence.offsets)
        self._failure = None
        self._blocked_since, self._overdue = None, False
        self._awaiting_since = None
        self.outbox.start(header)
        self._report.sizes()

    async def stop(self, within: float) -> None:
        """Finish the commit under way and publish what is committed, for at most ``within`` seconds."""
        self._stopping = True
        self._work.set()
        deadline = time.monotonic() + within
        if self._task is not None:
            await asyncio.wait([self._task], timeout=within)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.outbox.stop(max(0.0, deadline - time.monotonic()))

    @property
    def next_offsets(self) -> Mapping[Role, int]:
        """Where the next fetch of each topic must begin."""
        return self._next

    def waiting(self, role: Role) -> int:
        """Records of a topic that have been fetched and not folded."""
        return self._inbox.size(role) + self._seam.held(role)

    def report(self) -> None:
        """Say how large segments are, and how late the oldest deadline is that is due by the ingestion clock."""
        # Not with each commit: there are many sizes, and Prometheus looks seldom.
        self._report.sizes()
        late = self.processor.lapse_lag(CLOCK.instant()) if self.processor.clock is Clock.INGESTION else 0
        metrics.LAPSE_LAG.labels(str(self.processor.shard.number)).set(late / SECOND)

    def failed(self) -> BaseException | None:
        """What ended the shard's task for good, if anything did."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    def fetched(self, role: Role, covered: Range, records: Sequence[Record]) -> None:
        """Add one fetch. What overlaps is trimmed; what leaves a gap makes the shard load again."""
        expected = self._next[role]
        if covered.end <= expected or self._failure is not None:
            return
        try:
            records = unread(role, expected, covered, records)
        except LostBatch as error:
            self._fail(error)
            return
        self._next[role] = covered.end
        fetch = self._seam.below(Fetch(role, Range(expected, covered.end), records))
        if fetch is not None:
            self._put(fetch)

    def _put(self, fetch: Fetch) -> None:
        # A clock that has just been set right must not have good records refused.
        latest = FOREVER if self.processor.clock is Clock.EVENT else CLOCK.latest() + self._skew
        self._inbox.put(fetch.role, fetch.covered, *self.processor.read(fetch.role, fetch.records, latest))
        self._work.set()

    def rewound(self) -> None:
        """The shard has been taken away, to be read from the beginning."""
        self._fail(Recoverable("it is to be rebuilt, and has been taken away"))

    def _fail(self, error: Recoverable) -> None:
        self._failure = error
        self._work.set()

    @property
    def _skew(self) -> int:
        return self.processor.table.policy.events.allowed_skew

    async def _run(self) -> None:
        while not self._stopping:
            try:
                if self._failure is not None:
                    raise self._failure
                if not await self._advance():
                    await self._rest()
            except Recoverable as error:
                await self._recover(error)

    async def _rest(self) -> None:
        """Wait for records, or for the next look at the deadlines."""
        blocked = self._blocked_since is not None or self._awaiting_since is not None or self._behind
        with suppress(TimeoutError):
            await asyncio.wait_for(self._work.wait(), _BLOCKED_POLL if blocked else self._settings.tick_every)

    async def _advance(self) -> bool:
        """Fold what can be folded, else let time pass. Returns whether there may be more to do at once."""
        self._work.clear()
        step = self.processor.follow()
        if step is not None:
            self._impatient, self._awaiting_since = False, None
            await self._take_over(step)
            return True
        undrained, horizon = self._seen()
        taken = self._inbox.take(self._settings.batch_size, undrained, horizon, self.processor.stop_at)
        if isinstance(taken, Beyond):
            return await self._stop_time(taken.instant)
        if taken is not None:
            self._blocked_since, self._overdue = None, False
        elif self._behind:
            self.last_progress = max(self.last_progress, self.outbox.last_progress)
            return False
        elif await self._settle():
            return True
        elif self._inbox.roles:
            taken = self._after_waiting()
            if isinstance(taken, Beyond):
                return await self._stop_time(taken.instant)
            if taken is None:
                return False
        else:
            return await self._pass_time()
        await self._fold(taken)
        return True

    @property
    def _behind(self) -> bool:
        """Whether time must wait for the broker."""
        return self._pace.behind(self.outbox.pending)

    async def _settle(self) -> bool:
        """Apply a slice of what is already due, as after new cut-offs or another policy. Returns whether any was."""
        processor = self.processor
        step = None if processor.time == NEVER else processor.advance(processor.time, most=self._pace.slice)
        if step is None:
            return False
        await self._take_over(step)
        return True

    async def _stop_time(self, target: int) -> bool:
        """Summarise the population or take new cut-offs, where time must not pass before. Returns whether it may go on.

        Cut-offs need all shards, and clusters a worker that learns them, so they are waited for a while; once that was
        in vain, no longer until some come.
        """
        activations, partitions = self.processor.activations, self.processor.shard.partitions
        known = activations.latest
        step = self.processor.stop(target, most=self._pace.slice)
        if step is not None:
            self._awaiting_since = None
            await self._take_over(step)
            return True
        now = time.monotonic()
        self._awaiting_since = self._awaiting_since or now
        await asyncio.to_thread(activations.merge, partitions)
        await asyncio.to_thread(activations.refresh)
        if self._unlearned is not None and activations.latest == known:
            if await asyncio.to_thread(activations.learned_by, self._unlearned):
                self._unlearned = None
            else:
                await self._go_unlearned()
        if activations.latest != known:  # whichever of this worker's shards has made it
            return True
        if not self._impatient and now - self._awaiting_since < self._settings.merge_wait:
            self.last_progress = now
            return False
        shard, waited = self.processor.shard.number, self._settings.merge_wait
        if await self._go_unlearned():
            log.warning(
                "shard %d: nobody has learned clusters after %.1f s; going on with those of before until somebody does",
                *(shard, waited),
                extra={"action": "models_missing", "shard": shard},
            )
        if activations.latest != known:
            return True
        if not self._impatient:
            log.warning(
                "shard %d: another shard has not summarised its customers after %.1f s; going on with the cut-offs of "
                "before",
                *(shard, waited),
                extra={"action": "cutoffs_missing", "shard": shard},
            )
        self._impatient, self._awaiting_since = True, None
        metrics.CUTOFFS_MISSED.inc()
        self.processor.give_up()
        return True

    async def _go_unlearned(self) -> bool:
        """Take what all shards have said about themselves without what would have been learned from it, if it is there.

        It is not waited for again until what was missed has been learned. Returns whether this shard took it.
        """
        activations, partitions = self.processor.activations, self.processor.shard.partitions
        taken = await asyncio.to_thread(activations.merge, partitions, models=False)
        if taken:
            self._unlearned, self._awaiting_since = activations.active.cutoffs.as_of, None
        return taken

    async def _take_over(self, step: Step) -> None:
        """Commit and publish what no record caused; after another policy, load the shard again under it."""
        await self._commit(step)
        await self.outbox.put(step.commit, None)
        if step.reload:
            metrics.POLICY_VERSION.set(step.commit.policy_version)
            self._failure = PolicyChanged(f"policy version {step.commit.policy_version} is active now")
            log.info("%s", self._failure, extra={"action": "policy", "shard": self.processor.shard.number})
            await self._reload(self)

    def _seen(self) -> tuple[set[Role], int]:
        """Topics that may still deliver something earlier than what waits, and the horizon of Inbox.take.

        A replay needs the order in which events were produced, so a topic that is read to its end vouches only for
        what was produced before it was looked at. In production the records' own time gives the order.
        """
        polled = {role: self._polled(role) for role in ROLES}
        undrained = {role for role, at in polled.items() if at is None}
        if self.processor.clock is Clock.INGESTION:
            return undrained, FOREVER
        looked_at = min((at for at in polled.values() if at is not None), default=FOREVER / SECOND)
        return undrained, int((looked_at - _PRODUCER_DELAY) * SECOND)

    def _polled(self, role: Role) -> float | None:
        """When the topic was last seen to hold nothing more that may be folded now; None if it may."""
        return CLOCK.now() if self._seam.waits(role) else self._drained(role, self._next[role])

    def _after_waiting(self) -> Batch | Beyond | None:
        """What waits for a lagging topic, once it has waited long enough: once for each time the topic lags."""
        now = time.monotonic()
        self._blocked_since = self._blocked_since or now
        if now - self._blocked_since < self._settings.merge_wait:
            return None
        if not self._overdue:
            self._overdue = True
            shard, waited = self.processor.shard.number, self._settings.merge_wait
            log.warning(
                "shard %d: a topic still lags after %.1f s; going on without it",
                *(shard, waited),
                extra={"action": "merge_wait_exceeded", "shard": shard},
            )
        return self._inbox.take(self._settings.batch_size, set(), until=self.processor.stop_at)

    async def _fold(self, batch: Batch) -> None:
        began = time.perf_counter()
        step = self.processor.fold(batch.events, batch.refusals, batch.ranges, self._pace.beside(len(batch.events)))
        await self._commit(step)
        metrics.BATCH_SECONDS.observe(time.perf_counter() - began)
        metrics.BATCH_SIZE.observe(len(batch.events))
        self._report.records(batch, step)
        for held in self._seam.folded(step.commit.ranges):
            self._put(held)
        oldest = int(batch.events.recorded_at.min()) if len(batch.events) else None
        await self.outbox.put(step.commit, oldest)

    async def _pass_time(self) -> bool:
        """Under the ingestion clock, and only while every topic is read to its end, the wall clock moves time."""
        if self._seam.open:
            return self._pass_gaps()
        polled = [at for at in (self._drained(role, self._next[role]) for role in ROLES) if at is not None]
        if len(polled) < len(ROLES):
            return False
        looked_at = min(polled)
        # Nothing to do, as of then: a broker that has fallen silent since may hold anything.
        self.last_progress = max(self.last_progress, time.monotonic() - (CLOCK.now() - looked_at))
        if self.processor.clock is Clock.EVENT:
            return False
        instant = int(looked_at * SECOND)
        if self.processor.stop_at <= instant:
            return await self._stop_time(instant)
        step = self.processor.advance(instant, most=self._pace.slice)
        if step is None:
            return False
        await self._take_over(step)
        return True

    def _pass_gaps(self) -> bool:
        """What is left of a topic that is all read, below where the shard was, are no records. Returns if any is."""
        left = [
            (role, Range(start, end))
            for role, end in self._seam.until.items()
            if (start := self._next[role]) < end and self._drained(role, start) is not None
        ]
        for role, gap in left:
            self.fetched(role, gap, ())
        return bool(left)

    async def _commit(self, step: Step) -> None:
        began = time.perf_counter()
        failpoints.reached("after-fold")
        await self._aside.do(step.commit.size, self.processor.commit, step)
        failpoints.reached("after-commit")
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - began)
        self.last_progress = time.monotonic()
        self._report.changes(step)

    async def _recover(self, error: Recoverable) -> None:
        """Load the shard again, as often as it takes; the watchdog bounds how long."""
        shard = self.processor.shard.number
        self._failure = error  # until the shard is positioned anew, what is fetched has no place
        if isinstance(error, StaleOwner | LostBatch):
            metrics.REFUSED_COMMITS.labels("stale_owner" if isinstance(error, StaleOwner) else "lost_batch").inc()
        pause = _STALE_RETRY if isinstance(error, StaleOwner) else _FIRST_RETRY
        while not self._stopping:
            log.warning("shard %d: %s; loading it again", shard, error, extra={"action": "reload", "shard": shard})
            await asyncio.sleep(pause)
            try:
                # Meanwhile the outbox goes on: what is committed is to be published, and frees memory in Redis.
                await self._reload(self)
            except Recoverable as again:
                error, pause = again, min(pause * 2, _LAST_RETRY)
            else:
                metrics.RELOADS.inc()
                return
