"""ShardRunner: fetch, fold, commit, publish, and the one answer to whatever fails: load again and go on."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from models.changes import DeadLetter, SegmentChanged
from models.errors import StateError
from models.events import ROLE_OF_KIND, ROLES, Role
from models.instants import SECOND, parse
from streams import runner as runner_module
from streams.aside import Aside
from streams.clock import SteadyClock
from streams.commit import OutboxEntry, Range, ShardHeader
from streams.customers import customers_of
from streams.errors import KafkaUnavailable, PublishRefused, StoreUnavailable
from streams.outbox import Outbox
from streams.processor import Clock
from streams.runner import ShardRunner
from tests.unit.build import Event, Rec, at, erasure, purchase, record, refund, signup, text, tick
from tests.unit.fakes import (
    FakeKafka,
    FakePublisher,
    FakeWorker,
    FaultyStore,
    eventually,
    processor_on,
    quick,
    settle,
    threadless,
    without_pauses,
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


class Bench:
    """One runner, fed by hand. ``drained`` says when each topic was last seen to be read to its end."""

    def __init__(self, clock: Clock = Clock.INGESTION, **given: Any) -> None:
        self.store = FaultyStore()
        self.publisher = FakePublisher()
        self.processor = processor_on(self.store, clock=clock)
        self.drained: dict[Role, float | None] = dict.fromkeys(ROLES, 0.0)
        #: Where the topics were positioned by each reload, and what the next reloads raise.
        self.reloads: list[dict[Role, int]] = []
        self.reload_errors: list[Exception] = []
        outbox = Outbox(0, self.store, self.publisher, Aside(self.store))
        self.runner = ShardRunner(self.processor, outbox, Aside(self.store), self.look, self.reload, quick(**given))
        #: How often the runner has looked at a topic, or tried to load.
        self.turns = 0

    def load(self) -> ShardHeader:
        return self.processor.load(dict.fromkeys(ROLES, 0), {})

    def start(self) -> None:
        self.runner.start(self.load())

    def look(self, role: Role, delivered: int) -> float | None:
        """When the topic was last seen to be read to its end, as ``now`` has said."""
        self.turns += 1
        return self.drained[role]

    async def reload(self, runner: ShardRunner) -> None:
        """Take the shard again, as Shards does."""
        self.turns += 1
        if self.reload_errors:
            raise self.reload_errors.pop(0)
        header = self.load()
        await runner.outbox.stop(0)
        runner.resume(header)
        self.reloads.append(dict(header.offsets))

    def fetch(
        self, role: Role, start: int, *events: Event | Rec, end: int | None = None, stamps: Sequence[int] = ()
    ) -> None:
        """One fetch, of records that are stamped when they occurred."""
        records = []
        for i, event in enumerate(events):
            if isinstance(event, Rec):
                records.append(event._replace(offset=start + i))
            else:
                stamp = stamps[i] if stamps else parse(event["occurred_at"])
                records.append(record(event, start + i, stamp // 1000))
        self.runner.fetched(role, Range(start, start + len(events) if end is None else end), records)

    def now(self, instant: int | None, *roles: Role) -> None:
        """These topics, or all, were read to their end at this instant; None: they lag."""
        for role in roles or ROLES:
            self.drained[role] = None if instant is None else instant / SECOND

    @property
    def offsets(self) -> dict[Role, int]:
        return dict(self.store.peek().offsets)

    async def stored(self, **offsets: int) -> None:
        """Wait until the store stands at these offsets."""
        await eventually(lambda: all(self.offsets[role] == at for role, at in offsets.items()))  # type: ignore[index]

    @property
    def moves(self) -> list[tuple[str, str | None, str]]:
        """What was published: customer, label, cause."""
        return [(change["customer_id"], change["to"], change["cause"]) for change in self.publisher.once()]


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]], clock: Clock = Clock.INGESTION, **given: Any) -> Bench:
    """A scenario on a started runner, and an end."""

    async def whole() -> Bench:
        bench = Bench(clock, **given)
        bench.start()
        try:
            await scenario(bench)
        finally:
            await bench.runner.stop(0)
        return bench

    return asyncio.run(whole())


class Ticking:
    """The runner's clocks, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wall: int = at(1000)) -> None:
        self.monotonic_now, self.wall = 1000.0, wall / SECOND
        monkeypatch.setattr(runner_module, "time", self)
        monkeypatch.setattr(runner_module, "CLOCK", SteadyClock(self.time, self.monotonic))

    def pass_by(self, seconds: float) -> None:
        self.monotonic_now += seconds
        self.wall += seconds

    def instant(self) -> int:
        return int(self.wall * SECOND)

    def monotonic(self) -> float:
        return self.monotonic_now

    def time(self) -> float:
        return self.wall

    def perf_counter(self) -> float:
        return self.monotonic_now


# What is fetched


def test_what_is_fetched_is_stored_and_published() -> None:
    """Records go the whole way: into the store with their offsets, out as changes, and count as published."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, purchase("a", "1", at(0)), purchase("b", "2", at(1)))
        bench.fetch("signups", 0, signup("c", "3", at(2)))
        await eventually(lambda: bench.runner.outbox.published == {"signups": 1, "purchases": 2, "erasures": 0})
        assert bench.moves == [("a", "new", "purchase"), ("b", "new", "purchase"), ("c", "new", "signup")]
        assert bench.store.peek().entries == []
        assert bench.runner.next_offsets == {"signups": 1, "purchases": 2, "erasures": 0}
        assert bench.runner.failed() is None
        assert bench.runner.waiting("purchases") == 0

    run(scenario)


def test_fetches_that_overlap_are_trimmed() -> None:
    """A redelivered part of a range is folded once, and so is a whole range that came before."""

    async def scenario(bench: Bench) -> None:
        events = [refund("a", f"{i}", at(i)) for i in range(6)]
        bench.fetch("purchases", 0, *events[:3])
        bench.fetch("purchases", 0, *events[:3])
        bench.fetch("purchases", 1, *events[1:5])
        bench.fetch("purchases", 2, *events[2:4])
        bench.fetch("purchases", 4, *events[4:6])
        await bench.stored(purchases=6)
        assert bench.processor.table.refunds[bench.processor.table.index["a"]] == 6
        assert bench.reloads == []

    run(scenario)


def test_a_fetch_of_the_past_moves_nothing() -> None:
    """What is expected next never goes back."""

    async def scenario(bench: Bench) -> None:
        bench.now(None, "signups")
        bench.fetch("purchases", 0, *(refund("a", f"{i}", at(i)) for i in range(3)))
        bench.fetch("purchases", 0, refund("a", "0", at(0)))
        assert bench.runner.next_offsets["purchases"] == 3
        assert bench.runner.waiting("purchases") == 3
        bench.now(at(9))
        await bench.stored(purchases=3)

    run(scenario)


def test_a_trimmed_record_makes_no_second_dead_letter() -> None:
    """What was refused once is not refused again when it is redelivered."""

    async def scenario(bench: Bench) -> None:
        bad = Rec(b"nonsense", b"a", timestamp=at(0) // 1000)
        bench.fetch("purchases", 0, bad)
        bench.fetch("purchases", 0, bad, bad)
        await eventually(lambda: bench.runner.outbox.published.get("purchases") == 2)
        assert [letter["offset"] for letter in bench.publisher.dead_letters] == [0, 1]

    run(scenario)


def test_a_range_without_records_moves_the_offset() -> None:
    """Control records and compacted ones are covered although nothing comes of them."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, end=4)
        bench.fetch("purchases", 4, purchase("a", "1", at(0)), end=9)
        await eventually(lambda: bench.runner.outbox.published.get("purchases") == 9)
        assert bench.offsets["purchases"] == 9
        assert bench.moves == [("a", "new", "purchase")]

    run(scenario)


def test_a_gap_makes_the_shard_load_again() -> None:
    """Records that are missing between two fetches are read again; what follows the gap is not folded before."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await bench.stored(purchases=1)
        bench.fetch("purchases", 2, purchase("a", "3", at(2)))
        bench.fetch("purchases", 3, purchase("a", "4", at(3)))
        await eventually(lambda: bench.reloads)
        assert bench.reloads == [{"signups": 0, "purchases": 1, "erasures": 0}]
        assert bench.offsets["purchases"] == 1
        bench.fetch("purchases", 1, *(purchase("a", str(i), at(i)) for i in range(2, 5)))
        await bench.stored(purchases=4)
        assert bench.processor.table.orders[bench.processor.table.index["a"]] == 4

    run(scenario)


def test_a_gap_drops_what_waits() -> None:
    """Records that had not been folded when a gap was found are read again, and folded once."""

    async def scenario(bench: Bench) -> None:
        bench.now(None, "signups")
        bench.fetch("purchases", 0, refund("a", "1", at(0)))
        await settle()
        assert bench.runner.waiting("purchases") == 1
        bench.fetch("erasures", 5, end=6)
        await eventually(lambda: bench.reloads)
        assert bench.runner.waiting("purchases") == 0
        bench.now(at(0))
        bench.fetch("purchases", 0, refund("a", "1", at(0)))
        await bench.stored(purchases=1)
        assert bench.processor.table.refunds[bench.processor.table.index["a"]] == 1

    run(scenario)


def test_the_offsets_of_a_load_decide_what_is_expected() -> None:
    """After a takeover the first fetch is trimmed to where the store stands."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, refund("a", "1", at(0)), refund("a", "2", at(1)))
        await bench.stored(purchases=2)
        await bench.runner.stop(1)
        again = Bench()
        again.store = bench.store
        again.processor = processor_on(bench.store, clock=Clock.INGESTION)
        outbox = Outbox(0, again.store, again.publisher, Aside(again.store))
        again.runner = ShardRunner(again.processor, outbox, Aside(again.store), lambda *_: 0.0, again.reload, quick())
        again.start()
        assert again.runner.next_offsets["purchases"] == 2
        again.fetch("purchases", 0, *(refund("a", f"{i}", at(i)) for i in (1, 2, 3)))
        await again.stored(purchases=3)
        assert again.processor.table.refunds[again.processor.table.index["a"]] == 3
        await again.runner.stop(0)

    run(scenario)


def test_a_record_from_the_future_is_refused_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record stamped later than the wall clock and the allowed skew must not move the shard's time."""
    Ticking(monkeypatch, wall=at(10))

    async def scenario(bench: Bench) -> None:
        late, good = at(10, 301 * SECOND), at(10, 299 * SECOND)
        bench.fetch("purchases", 0, purchase("a", "1", at(9)), purchase("b", "2", at(9)), stamps=[late, good])
        await eventually(lambda: bench.publisher.dead_letters and bench.moves)
        assert [(letter["code"], letter["offset"]) for letter in bench.publisher.dead_letters] == [
            ("recorded_ahead", 0)
        ]
        assert bench.moves == [("b", "new", "purchase")]
        assert bench.store.peek().time == good

    run(scenario)


def test_a_replay_may_read_any_timestamps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the event clock the records' timestamps do not move time, so none is refused."""
    Ticking(monkeypatch, wall=at(10))

    async def scenario(bench: Bench) -> None:
        bench.now(at(600))
        bench.fetch("purchases", 0, purchase("a", "1", at(9)), stamps=[at(500)])
        await eventually(lambda: bench.moves)
        assert bench.publisher.dead_letters == []

    run(scenario, Clock.EVENT)


# Merging


def test_a_topic_that_lags_is_waited_for() -> None:
    """A purchase is not folded while an earlier signup may still be unread."""

    async def scenario(bench: Bench) -> None:
        bench.now(None, "signups")
        bench.fetch("purchases", 0, purchase("a", "1", at(5)))
        await settle(200)
        assert bench.offsets["purchases"] == 0
        bench.fetch("signups", 0, signup("a", "2", at(3)), signup("b", "3", at(9)))
        await eventually(lambda: len(bench.moves) == 2)
        assert bench.moves == [("a", "new", "signup"), ("b", "new", "signup")]
        assert bench.processor.table.orders[bench.processor.table.index["a"]] == 1

    run(scenario)


def test_a_topic_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After merge_wait the shard goes on without the topic, and says so."""
    clock = Ticking(monkeypatch)

    async def scenario(bench: Bench) -> None:
        bench.now(None, "signups")
        bench.fetch("purchases", 0, purchase("a", "1", at(5)))
        await settle(100)
        clock.monotonic_now += 9.9
        await settle(100)
        assert bench.offsets["purchases"] == 0
        clock.monotonic_now += 0.2
        await bench.stored(purchases=1)
        assert "a topic still lags after 10.0 s" in caplog.text

    run(scenario, merge_wait=10.0)


def test_a_lagging_topic_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once merge_wait has passed, what waits is folded without waiting as long again before each batch."""
    clock = Ticking(monkeypatch)

    async def scenario(bench: Bench) -> None:
        bench.now(None, "signups")
        for i in range(4):
            bench.fetch("purchases", i, refund("a", f"{i}", at(i)))
        await settle(100)
        clock.monotonic_now += 10.1
        await bench.stored(purchases=4)

    run(scenario, merge_wait=10.0, batch_size=1)


def test_a_replay_does_not_trust_a_look_that_is_too_old() -> None:
    """Under the event clock a topic read to its end vouches only for what was produced before it was looked at."""

    async def scenario(bench: Bench) -> None:
        bench.now(at(5))
        bench.fetch("purchases", 0, purchase("a", "1", at(1)), stamps=[at(5)])
        await settle(100)
        assert bench.offsets["purchases"] == 0
        bench.fetch("signups", 0, signup("b", "2", at(0)), stamps=[at(5)])
        bench.now(at(6))
        await eventually(lambda: len(bench.moves) == 2)
        assert [customer for customer, *_ in bench.moves] == ["b", "a"]

    run(scenario, Clock.EVENT)


def test_batches_are_bounded() -> None:
    """What waits is committed in batches of about batch_size, in order."""

    async def scenario(bench: Bench) -> None:
        bench.now(None, "signups")
        bench.fetch("purchases", 0, *(purchase(f"c{i}", f"{i}", at(i)) for i in range(10)))
        await settle()
        bench.fetch("signups", 0, signup("z", "z", at(20)))
        await eventually(lambda: len(bench.moves) == 11)
        sizes = [sum(end - start for start, end in commit.ranges.values()) for commit in bench.store.committed()]
        assert max(sizes) == 4
        assert sum(sizes) == 11
        assert [customer for customer, *_ in bench.moves] == [*(f"c{i}" for i in range(10)), "z"]

    run(scenario, batch_size=4)


# Time


def test_a_lapse_is_published_by_the_clock() -> None:
    """Without any record, the passing of time alone publishes what became due, once every topic is read to its end."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await bench.stored(purchases=1)
        bench.now(at(90))
        await settle(100)
        assert bench.moves == [("a", "new", "purchase")]
        bench.now(at(90, SECOND))
        await eventually(lambda: len(bench.moves) == 2)
        lapse = bench.publisher.changes[-1]
        assert (lapse["to"], lapse["effective_at"], lapse["decided_at"], lapse["backfill"]) == (
            "lapsed", text(at(90)), text(at(90, SECOND)), False,
        )  # fmt: skip

    run(scenario)


def test_nobody_lapses_while_a_topic_is_not_read_to_its_end() -> None:
    """The purchase that keeps a customer may still be unread."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await bench.stored(purchases=1)
        bench.now(at(200))
        bench.now(None, "erasures")
        await settle(300)
        assert bench.moves == [("a", "new", "purchase")]
        bench.now(at(200), "erasures")
        await eventually(lambda: len(bench.moves) == 2)

    run(scenario)


def test_time_moves_to_the_oldest_look() -> None:
    """Of the moments at which the topics were seen to be read to their end the earliest counts."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, purchase("a", "1", at(0)), purchase("b", "2", at(5)))
        await bench.stored(purchases=2)
        bench.now(at(500))
        bench.now(at(93), "signups")
        await eventually(lambda: len(bench.moves) == 3)
        await settle(100)
        assert bench.moves[2:] == [("a", "lapsed", "time")]
        assert bench.publisher.changes[-1]["decided_at"] == text(at(93))

    run(scenario)


def test_the_wall_clock_does_not_move_a_replay() -> None:
    """Under the event clock only events move time."""

    async def scenario(bench: Bench) -> None:
        bench.now(at(900))
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await eventually(lambda: bench.moves)
        await settle(300)
        assert bench.moves == [("a", "new", "purchase")]
        bench.fetch("purchases", 1, tick(at(100)))
        await eventually(lambda: len(bench.moves) == 2)

    run(scenario, Clock.EVENT)


def test_many_lapses_come_in_slices() -> None:
    """Lapses that fall due together are committed at most batch_size rows at a time, the earliest first."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, *(purchase(f"c{i}", f"{i}", at(i)) for i in range(10)))
        await bench.stored(purchases=10)
        bench.now(at(1000))
        await eventually(lambda: len(bench.moves) == 20)
        assert bench.moves[10:] == [(f"c{i}", "lapsed", "time") for i in range(10)]
        slices = [len(commit.rows) for commit in bench.store.committed() if not commit.ranges]
        assert slices == [3, 3, 3, 1]

    run(scenario, batch_size=3)


def test_time_waits_while_the_broker_is_behind() -> None:
    """Live events go on; what is due waits, so that it does not stand before them in the outbox."""

    async def scenario(bench: Bench) -> None:
        bench.fetch("purchases", 0, *(purchase(f"c{i}", f"{i}", at(i)) for i in range(200)))
        await bench.stored(purchases=200)
        await eventually(lambda: bench.runner.outbox.pending == 0)
        bench.publisher.block()
        bench.now(at(1000))
        await eventually(lambda: bench.runner.outbox.pending == 5)
        await settle(300)
        assert bench.runner.outbox.pending == 5
        bench.fetch("purchases", 200, purchase("live", "live", at(1000)))
        await bench.stored(purchases=201)
        assert bench.moves.count(("live", "new", "purchase")) == 0
        bench.publisher.release()
        await eventually(lambda: len(bench.moves) == 401)

    run(scenario, batch_size=25)


def test_how_late_a_lapse_is_is_told_by_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while a topic lags, so that ops see lapses that nobody publishes; a replay has no such lag."""
    clock = Ticking(monkeypatch, wall=at(50))

    def lag() -> float | None:
        return REGISTRY.get_sample_value("segmenter_lapse_lag_seconds", {"shard": "0"})

    async def scenario(bench: Bench) -> None:
        bench.now(at(50))
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await eventually(lambda: bench.moves)
        bench.runner.report()
        assert lag() == 0
        bench.now(None, "erasures")
        clock.monotonic_now += at(90, 90 * SECOND) / SECOND - clock.wall
        clock.wall = at(90, 90 * SECOND) / SECOND
        bench.runner.report()
        assert lag() == (90 if bench.processor.clock is Clock.INGESTION else 0)
        bench.now(at(90, 90 * SECOND))
        if bench.processor.clock is Clock.INGESTION:
            await eventually(lambda: len(bench.moves) == 2)
        bench.runner.report()
        assert lag() == 0

    run(scenario)
    run(scenario, Clock.EVENT)


# Failing


def test_a_reload_is_tried_until_it_works() -> None:
    """Redis or Kafka may be away for as long as they like; then the shard goes on where the store stands."""

    async def scenario(bench: Bench) -> None:
        bench.reload_errors = [StoreUnavailable("away"), KafkaUnavailable("away"), StoreUnavailable("away")]
        bench.store.fail("commit", "before")
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await eventually(lambda: bench.reloads)
        assert bench.reloads == [{"signups": 0, "purchases": 0, "erasures": 0}]
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await eventually(lambda: bench.moves)
        assert bench.runner.failed() is None

    run(scenario)


def test_what_cannot_be_mended_ends_the_shard() -> None:
    """State that this version cannot read is no reason to try again: failed() tells it."""

    async def scenario(bench: Bench) -> None:
        assert bench.runner.failed() is None
        error = StateError("written by a newer version")
        bench.reload_errors = [error]
        bench.store.fail("commit", "before")
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await eventually(bench.runner.failed)
        assert bench.runner.failed() is error

    run(scenario)


def test_a_bug_ends_the_shard() -> None:
    """An exception that nobody expected is told as it is."""

    async def scenario(bench: Bench) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        bench.processor.fold = broken  # type: ignore[method-assign,assignment]
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await eventually(bench.runner.failed)
        assert isinstance(bench.runner.failed(), ZeroDivisionError)

    run(scenario)


@pytest.mark.parametrize(("fault", "reason"), [("stolen", "stale_owner"), ("restored", "lost_batch")])
def test_refused_commits_and_reloads_are_counted(fault: str, reason: str) -> None:
    """Ops see by reason that commits were refused, and that shards were loaded again."""

    def counted() -> tuple[float, float]:
        refused = REGISTRY.get_sample_value("segmenter_refused_commits_total", {"reason": reason}) or 0.0
        return refused, REGISTRY.get_sample_value("segmenter_shard_reloads_total") or 0.0

    async def scenario(bench: Bench) -> None:
        before = counted()
        bench.store.keep()
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await bench.stored(purchases=1)
        bench.store.fail("commit", fault)
        bench.fetch("purchases", 1, purchase("a", "2", at(1)))
        await eventually(lambda: bench.reloads)
        await settle()
        assert counted() == (before[0] + 1, before[1] + 1)

    run(scenario)


def test_an_outbox_goes_on_while_the_store_refuses_commits() -> None:
    """What is committed is published although the shard cannot be loaded."""

    async def scenario(bench: Bench) -> None:
        bench.publisher.block()
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await bench.stored(purchases=1)
        bench.reload_errors = [StoreUnavailable("away")] * 10_000
        bench.store.fail("commit", "before")
        bench.fetch("purchases", 1, purchase("a", "2", at(1)))
        await settle()
        bench.publisher.release()
        await eventually(lambda: bench.moves)
        assert bench.reloads == []

    run(scenario)


# Progress


def test_progress_is_a_commit_or_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle shard makes progress when it is seen to be read to its end; not while a topic lags, or none commits."""
    clock = Ticking(monkeypatch)

    async def stands(bench: Bench) -> None:
        """Ten seconds later, it has made no progress."""
        since, turns = bench.runner.last_progress, bench.turns
        clock.pass_by(10)
        await eventually(lambda: bench.turns > turns + 20)
        assert bench.runner.last_progress == since

    async def scenario(bench: Bench) -> None:
        await settle()
        await stands(bench)  # the broker says nothing
        bench.now(clock.instant())
        await eventually(lambda: bench.runner.last_progress == clock.monotonic_now)
        bench.now(None, "signups")
        await settle()
        await stands(bench)
        bench.now(clock.instant())
        await eventually(lambda: bench.runner.last_progress == clock.monotonic_now)
        bench.reload_errors = [StoreUnavailable("away")] * 10_000
        bench.store.fail("commit", "before")
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await eventually(lambda: len(bench.reload_errors) < 10_000)
        await stands(bench)

    run(scenario)


def test_what_the_broker_acknowledges_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """While time waits for the broker, an idle shard stalls only if the broker does."""
    clock = Ticking(monkeypatch)
    monkeypatch.setattr("streams.outbox.time", clock)
    monkeypatch.setattr("streams.outbox._AT_ONCE", 1)

    async def scenario(bench: Bench) -> None:
        bench.publisher.block()
        for offset in range(6):
            bench.fetch("purchases", offset, purchase(f"c{offset}", f"e{offset}", at(offset)))
            await bench.stored(purchases=offset + 1)
        await settle()
        since = clock.monotonic_now
        clock.monotonic_now += 10
        await settle(200)
        assert bench.runner.last_progress == since
        sent = bench.publisher.publish

        async def once(entries: Sequence[OutboxEntry]) -> None:
            bench.publisher.block()
            await sent(entries)

        bench.publisher.publish = once  # type: ignore[method-assign]
        bench.publisher.release()
        await eventually(lambda: bench.runner.last_progress == clock.monotonic_now)
        assert bench.runner.outbox.pending > 2

    run(scenario)


def test_records_are_counted_by_what_became_of_them(caplog: pytest.LogCaptureFixture) -> None:
    """Used and refused records by topic, changes by move, dead letters by code, and a log line for each code."""

    def counted() -> list[float]:
        names: list[tuple[str, dict[str, str]]] = [
            ("segmenter_events_total", {"topic": "purchases", "outcome": "used"}),
            ("segmenter_events_total", {"topic": "purchases", "outcome": "refused"}),
            ("segmenter_dead_letters_total", {"code": "invalid_json"}),
            ("segmenter_dead_letters_total", {"code": "wrong_key"}),
            (
                "segmenter_changes_total",
                {"dimension": "lifecycle", "from_segment": "", "to_segment": "new", "cause": "purchase"},
            ),
        ]
        return [REGISTRY.get_sample_value(*name) or 0.0 for name in names]

    async def scenario(bench: Bench) -> None:
        before = counted()
        stamp = at(0) // 1000
        bad = Rec(b"nonsense", b"a", timestamp=stamp)
        wrong = record(purchase("a", "9", at(0)), timestamp=stamp)._replace(key=b"b")
        good = [purchase("a", "1", at(0)), purchase("b", "2", at(0)), refund("c", "3", at(0))]
        bench.fetch("purchases", 0, *good, bad, wrong, bad)
        await bench.stored(purchases=6)
        await settle()
        assert [new - old for new, old in zip(counted(), before, strict=True)] == [3, 3, 2, 1, 2]
        lines = [line.getMessage() for line in caplog.records if "refused as" in line.getMessage()]
        assert len(lines) == 2
        assert lines[0].startswith("2 records refused as invalid_json, the first on purchases at offset 3: ")
        bench.runner.report()
        sizes = {
            segment: REGISTRY.get_sample_value(
                "segmenter_segment_customers", {"dimension": "lifecycle", "segment": segment, "shard": "0"}
            )
            for segment in ("new", "potential", "regular", "lapsed")
        }
        assert sizes == {"new": 2, "potential": 0, "regular": 0, "lapsed": 0}

    run(scenario)


# Stopping


def test_stop_publishes_what_is_committed() -> None:
    """A runner that is told to stop finishes its commit and publishes before it returns."""

    async def scenario(bench: Bench) -> None:
        bench.publisher.block()
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await bench.stored(purchases=1)
        stopping = asyncio.create_task(bench.runner.stop(10))
        await settle()
        bench.publisher.release()
        await stopping
        assert bench.moves == [("a", "new", "purchase")]
        assert bench.store.peek().entries == []
        assert bench.runner.outbox.published["purchases"] == 1

    run(scenario)


def test_stop_is_bounded() -> None:
    """If the broker hangs, stop returns after its time; the store holds what was not published."""

    async def scenario(bench: Bench) -> None:
        bench.publisher.block()
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await bench.stored(purchases=1)
        await bench.runner.stop(0.01)
        assert bench.moves == []
        assert len(bench.store.peek().entries) == 1

    run(scenario)


def test_stop_while_the_shard_cannot_be_loaded() -> None:
    """A shard in the middle of a recovery stops at once."""

    async def scenario(bench: Bench) -> None:
        bench.reload_errors = [StoreUnavailable("away")] * 1_000_000
        bench.store.fail("commit", "before")
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await eventually(lambda: len(bench.reload_errors) < 1_000_000)
        await bench.runner.stop(10)
        assert bench.runner.failed() is None

    run(scenario)


def test_a_stopped_runner_folds_no_more() -> None:
    """What comes after a stop changes nothing."""

    async def scenario(bench: Bench) -> None:
        await bench.runner.stop(1)
        bench.fetch("purchases", 0, purchase("a", "1", at(0)))
        await settle()
        assert bench.offsets["purchases"] == 0
        await bench.runner.stop(1)

    run(scenario)


# Crashes: whatever fails and whenever, what consumers see that drop repeated ids is the same.

HISTORY: list[Event] = [
    signup("ann", "s1", at(0), country="DE"),
    purchase("bob", "p1", at(1), "10.00", country="FR"),
    purchase("bob", "p2", at(2), "5.00"),
    signup("cid", "s2", at(3)),
    purchase("bob", "p3", at(4), "2.50", channel="web"),
    refund("dan", "r1", at(5), "1.00"),
    erasure("cid", "e1", at(6)),
    purchase("dan", "p4", at(7), "3.00"),
    purchase("bob", "p2", at(8), "5.00"),
    purchase("ann", "p5", at(60), "1.00", country="IT"),
    purchase("eve", "p6", at(95), "8.00"),
    purchase("bob", "p7", at(100), "4.00"),
    purchase("eve", "p8", at(20), "8.00"),
    signup("cid", "s3", at(101)),
]
REFUSED = Rec(b"nonsense", b"x", timestamp=at(100) // 1000)
END = at(400)

Published = tuple[list[SegmentChanged], list[DeadLetter], Any]


def history() -> FakeKafka:
    """The topics with the whole history; two records that cannot be used lie in its middle."""
    kafka = FakeKafka()
    for event in HISTORY:
        kafka.produce([event])
        if event["event_id"] == "p2":
            kafka.append(ROLE_OF_KIND["purchase"], REFUSED._replace(timestamp=at(2) // 1000))
    kafka.now = END / SECOND
    return kafka


def what_is_left(store: FaultyStore) -> Any:
    """The customers, sizes and dictionaries at the end; attributes as texts, because codes may differ."""
    header = store.peek()
    return sorted(map(str, customers_of(store, 0))), store.segments(0), header.offsets, header.entries


@cache
def undisturbed(fetch: int, batch_size: int) -> Published:
    """What is published and left if nothing fails."""
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()

    async def work() -> None:
        worker = FakeWorker(kafka, store, publisher, fetch=fetch, batch_size=batch_size)
        await worker.assign(0)
        await worker.catch_up()
        await worker.shards.stop(1)

    asyncio.run(work())
    return publisher.once(), publisher.letters_once(), what_is_left(store)


def without_backfill(changes: list[SegmentChanged]) -> list[dict[str, Any]]:
    return [{name: value for name, value in change.items() if name != "backfill"} for change in changes]


def by_customer(changes: list[SegmentChanged]) -> dict[str, list[dict[str, Any]]]:
    """Each customer's changes in the order of their publication."""
    customers: dict[str, list[dict[str, Any]]] = {}
    for change in without_backfill(changes):
        customers.setdefault(change["customer_id"], []).append(change)
    return customers


def check(store: FaultyStore, publisher: FakePublisher, expected: Published) -> None:
    changes, letters, left = expected
    assert by_customer(publisher.once()) == by_customer(changes)
    # Time came from the log: nothing that was never published before is taken for history.
    assert publisher.once() == changes
    assert publisher.letters_once() == letters
    assert what_is_left(store) == left


class Killed(Exception):
    """The process is gone."""


def work_through(
    kafka: FakeKafka, store: FaultyStore, publisher: FakePublisher, kills: Sequence[int], **how: Any
) -> int:
    """Workers one after the other, each killed after so many turns, the last left alone. Returns how many refused."""

    async def life(turns: int | None) -> None:
        worker = FakeWorker(kafka, store, publisher, **how)
        left = turns

        def turn() -> None:
            nonlocal left
            worker.turn()
            if left is not None:
                left -= 1
                if left < 0:
                    raise Killed

        try:
            await worker.assign(0)
            await eventually(worker.at_rest, turn)
            await worker.shards.stop(1)
        finally:
            await worker.kill()

    refused = 0
    pending: list[int | None] = [*kills, None]
    while pending:
        try:
            asyncio.run(life(pending[0]))
        except Killed:
            pass
        except (PublishRefused, StoreUnavailable):
            refused += 1
            continue
        pending.pop(0)
    return refused


WAYS = {"one by one": {"fetch": 1, "batch_size": 1}, "in batches": {"fetch": 3, "batch_size": 4}}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How much is fetched and folded at once, without threads: a crash happens at the same place every time."""
    threadless(monkeypatch)
    return WAYS[request.param]


@pytest.fixture
def expected(way: dict[str, int]) -> Published:
    return undisturbed(**way)


def test_the_undisturbed_run_is_the_replay(expected: Published) -> None:
    """What crashes are compared with is what a replay of the same records gives."""
    changes, letters, _ = expected
    assert [(c["customer_id"], c["to"], c["cause"]) for c in changes if c["customer_id"] in ("bob", "cid")] == [
        ("bob", "new", "purchase"),
        ("cid", "new", "signup"),
        ("bob", "regular", "purchase"),
        ("cid", None, "erasure"),
        ("bob", "lapsed", "time"),
        ("bob", "regular", "purchase"),
        ("cid", "new", "signup"),
        ("cid", "potential", "time"),
        ("bob", "lapsed", "time"),
        ("cid", "lapsed", "time"),
    ]
    assert [letter["code"] for letter in letters] == ["invalid_json", "invalid_json"]
    assert not any(change["backfill"] for change in changes)


@pytest.mark.parametrize("nth", range(6))
@pytest.mark.parametrize("fault", ["before", "after", "stolen"])
def test_a_commit_that_fails(way: dict[str, int], expected: Published, fault: str, nth: int) -> None:
    """The store does not answer, or its answer is lost, or another owner comes, at any commit."""
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()
    store.fail("commit", *[None] * nth, fault)
    assert work_through(kafka, store, publisher, [], **way) == 0
    check(store, publisher, expected)


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("method", ["header", "acquire", "rows"])
def test_a_load_that_fails(way: dict[str, int], expected: Published, method: str, fault: str) -> None:
    """After a commit that failed, loading the shard fails several times, too."""
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()

    async def work() -> None:
        worker = FakeWorker(kafka, store, publisher, **way)
        await worker.assign(0)
        store.fail(method, fault, fault)
        store.fail("commit", None, "before", "after")
        await worker.catch_up()
        await worker.shards.stop(1)

    asyncio.run(work())
    check(store, publisher, expected)


@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_publisher_that_refuses(way: dict[str, int], expected: Published, fault: str, nth: int) -> None:
    """The worker ends; the next one publishes what the store still holds."""
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()
    publisher.faults.extend([*[None] * nth, fault])
    work_through(kafka, store, publisher, [], **way)
    check(store, publisher, expected)


@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize("fault", ["before", "after"])
def test_an_acknowledgement_that_fails(way: dict[str, int], expected: Published, fault: str, nth: int) -> None:
    """What was published and could not be removed is published again by whoever loads the shard next."""
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()
    store.fail("acknowledge", *[None] * nth, fault)
    work_through(kafka, store, publisher, [], **way)
    work_through(kafka, store, publisher, [], **way)
    check(store, publisher, expected)


@pytest.mark.parametrize("turns", range(0, 40, 5))
def test_a_worker_that_is_killed(way: dict[str, int], expected: Published, turns: int) -> None:
    """At any moment, twice."""
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()
    work_through(kafka, store, publisher, [turns, turns + 1], **way)
    check(store, publisher, expected)


def test_kafka_does_not_answer_while_the_shard_is_loaded_again(way: dict[str, int], expected: Published) -> None:
    """A broker that is away is tried again."""
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()
    store.fail("commit", None, "before")

    async def work() -> None:
        worker = FakeWorker(kafka, store, publisher, **way)
        await worker.assign(0)
        worker.consumer.errors.extend([KafkaConnectionError("away"), KafkaConnectionError("away")])
        await worker.catch_up()
        assert not worker.consumer.errors
        await worker.shards.stop(1)

    asyncio.run(work())
    check(store, publisher, expected)


FAULTS = st.lists(st.sampled_from([None, None, "before", "after", "stolen"]), max_size=8)
LOSSES = st.lists(st.sampled_from([None, "before", "after"]), max_size=5)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    commits=FAULTS,
    acknowledgements=LOSSES,
    publishes=LOSSES,
    loads=st.lists(st.sampled_from([None, "before", "after"]), max_size=4),
    kills=st.lists(st.integers(0, 60), max_size=3),
    fetch=st.sampled_from([1, 3, 9]),
    batch_size=st.sampled_from([1, 4, 50]),
)
def test_any_crashes(
    commits: list[str | None],
    acknowledgements: list[str | None],
    publishes: list[str | None],
    loads: list[str | None],
    kills: list[int],
    fetch: int,
    batch_size: int,
) -> None:
    """Any of these faults, in any order, together with kills: the same changes, each customer's in the same order."""
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()
    store.fail("commit", *commits)
    store.fail("acknowledge", *acknowledgements)
    store.fail("rows", *loads)
    publisher.faults.extend(publishes)
    with pytest.MonkeyPatch.context() as patch:
        without_pauses(patch)
        threadless(patch)
        work_through(kafka, store, publisher, kills, fetch=fetch, batch_size=batch_size)
        # What could not be removed from the outbox waits for the next start.
        store.faults.clear()
        publisher.faults.clear()
        work_through(kafka, store, publisher, [], fetch=fetch, batch_size=batch_size)
        changes, letters, left = undisturbed(fetch, batch_size)
    assert by_customer(publisher.once()) == by_customer(changes)
    assert publisher.letters_once() == letters
    assert what_is_left(store) == left


@pytest.mark.parametrize("restored_after", [1, 2, 4])
def test_a_store_that_went_back(way: dict[str, int], expected: Published, restored_after: int) -> None:
    """A backup is restored while the worker runs: it reads again from there, and publishes no change anew.

    What it decides again is the same change but for ``backfill``, which is then true.
    """
    kafka, store, publisher = history(), FaultyStore(), FakePublisher()

    async def work() -> None:
        worker = FakeWorker(kafka, store, publisher, **way)
        await worker.assign(0)
        store.keep()
        store.fail("commit", *[None] * restored_after, "restored")
        await worker.catch_up()
        await worker.shards.stop(1)

    asyncio.run(work())
    check(store, publisher, expected)
    first = {change["change_id"]: change for change in expected[0]}
    for change in publisher.changes:
        assert change in (first[change["change_id"]], {**first[change["change_id"]], "backfill": True})
    assert len(publisher.changes) > len(first)
