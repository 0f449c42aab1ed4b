"""Outbox: what is committed is published in order, and how far that is, is never told too early."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import cramjam
import numpy as np
import pytest
from prometheus_client import REGISTRY

from models.changes import SNAPSHOT
from models.errors import StateError
from models.events import Role
from models.instants import SECOND
from models.partitioner import partition_of
from models.rows import layout_of, pack
from streams.aside import Aside
from streams.clock import SteadyClock
from streams.commit import OutboxEntry, Range, ShardCommit
from streams.errors import PublishRefused
from streams.outbox import Outbox
from streams.repartition import move
from streams.snapshots import put_right
from tests.unit.build import Rec, at, purchase, record
from tests.unit.fakes import FakePublisher, FaultyStore, eventually, processor_on, settle, threadless


@pytest.fixture(autouse=True)
def _without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threadless(monkeypatch)


class Bench:
    """One shard's outbox on a store, and a processor that commits to it."""

    def __init__(self) -> None:
        self.store = FaultyStore()
        self.publisher = FakePublisher()
        self.processor = processor_on(self.store)
        self.outbox = Outbox(0, self.store, self.publisher, Aside(self.store))
        self.offset = 0
        self.load()

    def load(self) -> None:
        """Take the shard."""
        self.header = self.processor.load({"signups": 0, "purchases": 0, "erasures": 0}, {})

    def commit(self, customer: str = "", *, refused: bool = False) -> ShardCommit:
        """Commit one record: a customer's first purchase, a refused record, or what changes nothing."""
        value = b"nonsense" if refused else b'{"kind":"tick","occurred_at":"2024-01-01T00:00:00Z"}'
        made = Rec(value, None, self.offset, at(400) // 1000)
        if customer:
            event = purchase(customer, customer, at(0))
            made = record(event, self.offset, at(400) // 1000)
        batch, refusals = self.processor.read("purchases", [made], at(500))
        covered = Range(self.offset, self.offset + 1)
        step = self.processor.fold(batch, refusals, {"purchases": covered})
        self.processor.commit(step)
        self.offset += 1
        return step.commit

    @property
    def stored(self) -> list[str]:
        """Customers whose change is still in the store's outbox."""
        return [change["customer_id"] for entry in self.store.peek().entries for change in entry.changes]

    @property
    def published(self) -> list[str]:
        """Customers whose change was published, in that order."""
        return [change["customer_id"] for change in self.publisher.changes]

    async def overtaken(self, customer: str) -> None:
        """Begin to publish a commit, which another worker then publishes and removes; the broker waits for release."""
        self.outbox.start(self.header)
        self.publisher.block()
        await self.outbox.put(self.commit(customer), None)
        await settle()
        self.store.acknowledge(0, [entry.id for entry in self.store.peek().entries])

    async def end(self) -> None:
        """Stop without waiting."""
        await self.outbox.stop(0)


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    """A scenario on a bench of its own, and an end."""

    async def whole() -> None:
        bench = Bench()
        try:
            await scenario(bench)
        finally:
            await bench.end()

    asyncio.run(whole())


def pending() -> float | None:
    return REGISTRY.get_sample_value("segmenter_outbox_pending", {"shard": "0"})


def test_what_was_committed_is_published_and_removed() -> None:
    """In the order of the commits, each once; then nothing of it is left in the store."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        for customer in "abc":
            await bench.outbox.put(bench.commit(customer), at(400))
        await eventually(lambda: bench.outbox.published["purchases"] == 3 if bench.outbox.published else False)
        assert bench.published == ["a", "b", "c"]
        assert bench.stored == []
        assert bench.outbox.published == {"signups": 0, "purchases": 3, "erasures": 0}
        assert bench.outbox.failed() is None

    run(scenario)


def test_dead_letters_are_published_too() -> None:
    """An entry with nothing but a dead letter is sent like any other."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit(refused=True), None)
        await eventually(lambda: bench.publisher.dead_letters and not bench.store.peek().entries)
        assert [letter["code"] for letter in bench.publisher.dead_letters] == ["invalid_json"]
        assert bench.publisher.changes == []

    run(scenario)


def test_what_an_earlier_owner_left_comes_first() -> None:
    """Entries found at the start are published before anything new, in their order."""

    async def scenario(bench: Bench) -> None:
        for customer in "abcdefghijkl":
            bench.commit(customer)
        bench.load()
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit("m"), None)
        await eventually(lambda: not bench.stored)
        assert bench.published == list("abcdefghijklm")

    run(scenario)


def test_more_leftovers_than_may_wait_do_not_block_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much an earlier owner left, the start takes all of it and the shard goes on."""
    monkeypatch.setattr("streams.outbox._MOST_WAITING", 2)

    async def scenario(bench: Bench) -> None:
        customers = [f"c{i}" for i in range(20)]
        for customer in customers:
            bench.commit(customer)
        bench.load()
        bench.outbox.start(bench.header)
        await eventually(lambda: not bench.stored)
        assert bench.published == customers

    run(scenario)


def test_nothing_counts_as_published_before_the_leftovers_are() -> None:
    """The stored offsets hold for Kafka's commit only once everything below them has been acknowledged."""

    async def scenario(bench: Bench) -> None:
        bench.commit("a")
        bench.load()
        bench.publisher.block()
        bench.outbox.start(bench.header)
        await settle()
        assert bench.outbox.published == {}
        bench.publisher.release()
        await eventually(lambda: bench.outbox.published)
        assert bench.outbox.published["purchases"] == 1

    run(scenario)


def test_an_empty_commit_counts_after_those_before_it() -> None:
    """A commit with nothing to publish does not move the published offset past changes that still wait."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        await eventually(lambda: bench.outbox.published)
        bench.publisher.block()
        await bench.outbox.put(bench.commit("a"), None)
        await bench.outbox.put(bench.commit(), None)
        await settle()
        assert bench.outbox.published["purchases"] == 0
        bench.publisher.release()
        await eventually(lambda: bench.outbox.published["purchases"] == 2)

    run(scenario)


def test_a_commit_of_time_alone_moves_no_offset() -> None:
    """A lapse that the clock caused is published, and the published offsets stay."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit("a"), None)
        step = bench.processor.advance(at(1000))
        assert step is not None
        bench.processor.commit(step)
        await bench.outbox.put(step.commit, None)
        await bench.outbox.stop(10)
        assert bench.published == ["a", "a"]
        assert bench.outbox.published["purchases"] == 1

    run(scenario)


def test_the_shard_waits_when_too_much_is_unpublished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not acknowledge stops the shard after a bounded number of commits, and loses nothing."""
    monkeypatch.setattr("streams.outbox._MOST_WAITING", 3)
    customers = [f"c{i}" for i in range(20)]

    async def scenario(bench: Bench) -> None:
        bench.publisher.block()
        bench.outbox.start(bench.header)
        put = 0

        async def produce() -> None:
            nonlocal put
            for customer in customers:
                await bench.outbox.put(bench.commit(customer), None)
                put += 1

        task = asyncio.create_task(produce())
        await settle(200)
        assert put < len(customers)
        bench.publisher.release()
        await task
        await eventually(lambda: not bench.stored)
        assert bench.published == customers

    run(scenario)


def test_entries_are_sent_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several waiting entries go out together, so that the broker is asked less often, but never too many."""
    monkeypatch.setattr("streams.outbox._AT_ONCE", 4)

    async def scenario(bench: Bench) -> None:
        for i in range(10):
            bench.commit(f"c{i}")
        bench.load()
        bench.outbox.start(bench.header)
        await eventually(lambda: not bench.stored)
        assert bench.published == [f"c{i}" for i in range(10)]
        assert max(map(len, bench.publisher.calls)) == 4

    run(scenario)


@pytest.mark.parametrize("fault", ["before", "after"])
def test_an_entry_that_cannot_be_removed_is_removed_later(fault: str) -> None:
    """A store that fails after the broker acknowledged stops nothing; what is still there goes with the next entry."""

    async def scenario(bench: Bench) -> None:
        bench.store.fail("acknowledge", fault)
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit("a"), None)
        await eventually(lambda: bench.outbox.published.get("purchases") == 1)
        await bench.outbox.put(bench.commit("b"), None)
        await eventually(lambda: bench.outbox.published["purchases"] == 2)
        assert bench.outbox.failed() is None
        assert bench.stored == []
        assert bench.published == ["a", "b"]

    run(scenario)


def test_an_entry_that_was_never_removed_is_sent_again() -> None:
    """A worker that ends before it could remove an entry leaves it to the next start, which publishes it again."""

    async def scenario(bench: Bench) -> None:
        bench.store.fail("acknowledge", "before")
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit("a"), None)
        await eventually(lambda: bench.outbox.published.get("purchases") == 1)
        assert bench.stored == ["a"]
        await bench.outbox.stop(0)
        bench.load()
        bench.outbox.start(bench.header)
        await eventually(lambda: not bench.stored)
        assert bench.published == ["a", "a"]

    run(scenario)


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_refused_message_ends_publishing_and_stays(fault: str) -> None:
    """PublishRefused is told by failed(); the entry stays in the store and nothing counts as published."""

    async def scenario(bench: Bench) -> None:
        bench.publisher.faults.append(fault)
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit("a"), None)
        await eventually(bench.outbox.failed)
        assert isinstance(bench.outbox.failed(), PublishRefused)
        assert bench.outbox.published.get("purchases", 0) == 0
        assert bench.stored == ["a"]

    run(scenario)


def test_stop_publishes_what_waits() -> None:
    """Given time, everything that was put is published and removed before stop returns."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        for customer in "abc":
            await bench.outbox.put(bench.commit(customer), None)
        await bench.outbox.stop(10)
        assert bench.published == ["a", "b", "c"]
        assert bench.stored == []
        assert bench.outbox.published["purchases"] == 3

    run(scenario)


def test_stop_does_not_wait_for_a_broker_that_hangs() -> None:
    """After its time stop gives up; what was not acknowledged stays in the store for the next owner."""

    async def scenario(bench: Bench) -> None:
        bench.publisher.block()
        bench.outbox.start(bench.header)
        for customer in "ab":
            await bench.outbox.put(bench.commit(customer), None)
        await bench.outbox.stop(0.01)
        assert bench.stored == ["a", "b"]
        assert bench.published == []
        assert bench.outbox.failed() is None

    run(scenario)


def test_stop_before_a_start_and_twice_is_harmless() -> None:
    """Whatever the state, stop leaves it stopped."""

    async def scenario(bench: Bench) -> None:
        await bench.outbox.stop(10)
        assert bench.outbox.failed() is None
        bench.outbox.start(bench.header)
        await bench.outbox.stop(0)
        await bench.outbox.stop(10)

    run(scenario)


def test_a_start_forgets_what_was_published_before() -> None:
    """After a restart with an older header only what that header vouches for counts."""

    async def scenario(bench: Bench) -> None:
        first = bench.header
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit("a"), None)
        await bench.outbox.stop(10)
        assert bench.outbox.published["purchases"] == 1
        bench.outbox.start(first)
        assert bench.outbox.published == {}
        await eventually(lambda: bench.outbox.published)
        assert bench.outbox.published["purchases"] == 0

    run(scenario)


def test_latency_is_measured_from_the_oldest_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for commits that published something; never below zero."""
    monkeypatch.setattr("streams.outbox.CLOCK", SteadyClock(lambda: at(400) / SECOND + 5, lambda: 0.0))

    def sample(suffix: str) -> float:
        return REGISTRY.get_sample_value(f"segmenter_event_to_published_seconds_{suffix}") or 0.0

    async def scenario(bench: Bench) -> None:
        count, total = sample("count"), sample("sum")
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit("a"), at(400))
        await bench.outbox.put(bench.commit("b"), at(401))
        await bench.outbox.put(bench.commit("c"), None)
        await bench.outbox.put(bench.commit(), at(300))
        await bench.outbox.stop(10)
        assert sample("count") == count + 2
        assert sample("sum") == pytest.approx(total + 5.0)

    run(scenario)


def test_nothing_is_pending_once_all_is_published() -> None:
    """The gauge is back at 0."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        for customer in "abc":
            await bench.outbox.put(bench.commit(customer), None)
        await bench.outbox.stop(10)
        assert pending() == 0

    run(scenario)


def test_what_the_broker_has_not_acknowledged_is_pending() -> None:
    """Entries that were handed over and not acknowledged count as pending."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        await eventually(lambda: bench.outbox.published)
        bench.publisher.block()
        for customer in "abc":
            await bench.outbox.put(bench.commit(customer), None)
            await settle()
        assert pending() == 3

    run(scenario)


@pytest.mark.parametrize("crash_after", range(12))
def test_a_restart_at_any_moment_publishes_every_change(crash_after: int) -> None:
    """Cancelled at any turn and started again, repeated ids removed, all changes come in their order."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        for customer in "abcdefghij":
            await bench.outbox.put(bench.commit(customer), None)
        await settle(crash_after)
        await bench.outbox.stop(0)
        bench.load()
        bench.outbox.start(bench.header)
        await eventually(lambda: not bench.stored)
        assert [change["customer_id"] for change in bench.publisher.once()] == list("abcdefghij")

    run(scenario)


def test_offsets_are_told_by_topic() -> None:
    """Each topic's offset moves with its own ranges."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        batch, _ = bench.processor.read("signups", [], 0)
        ranges: Sequence[Mapping[Role, Range]] = [{"signups": Range(0, 4)}, {"erasures": Range(0, 7)}]
        for covered in ranges:
            step = bench.processor.fold(batch, [], covered)
            bench.processor.commit(step)
            await bench.outbox.put(step.commit, None)
        await bench.outbox.stop(10)
        assert bench.outbox.published == {"signups": 4, "purchases": 0, "erasures": 7}

    run(scenario)


def test_an_entry_of_a_newer_version_is_told() -> None:
    """Nobody may publish what they cannot read, nor lose it."""
    with pytest.raises(StateError, match="outbox entry 7-t was stored in format 2; run a newer version"):
        OutboxEntry.decode("7-t", b'{"format":2,"changes":[],"dead_letters":[]}')


def test_draws_are_stored_as_they_are() -> None:
    """Their text goes into the entry as it is, is read back alike, and an entry of before has none."""
    draws = (b'{"dimension":"k","keys":[18446744073709551615],"rows":[[0.1,-2.5e-7]]}', b'{"a":1}')
    entry = OutboxEntry("7-t", (), (), draws=draws)
    assert b",".join(draws) in entry.encode()
    assert tuple(OutboxEntry.decode("7-t", entry.encode()).draws) == draws
    before = OutboxEntry.decode("7-t", b'{"format":1,"changes":[],"dead_letters":[],"withheld":[],"forgotten":[]}')
    assert before.draws == ()


LARGE = OutboxEntry("7-t", (), (), draws=[b'{"dimension":"%d"}' % number for number in range(5_000)])


def test_a_large_entry_is_stored_compressed() -> None:
    """As a zstd frame of the same JSON, which anybody can read; a small one as it is."""
    stored = LARGE.encode()
    plain = bytes(cramjam.zstd.decompress(stored))
    assert len(stored) < len(plain) / 4
    assert plain.startswith(b'{"format":1,"changes":[],"draws":[{"dimension":"0"},')
    assert OutboxEntry.decode("7-t", stored).draws == OutboxEntry.decode("7-t", plain).draws == tuple(LARGE.draws)


@pytest.mark.parametrize(
    "stored",
    [
        b"", b"{", b"[]", b"null", b"{}", b'{"format":1,"changes":[]}', b"\xff",
        b'{"format":1,"changes":[],"dead_letters":[],"draws":null}', b"\x28\xb5\x2f\xfd", LARGE.encode()[:-1],
    ],
)  # fmt: skip
def test_an_entry_that_is_damaged_is_told(stored: bytes) -> None:
    """By its id, with what can be done."""
    with pytest.raises(StateError, match="outbox entry 7-t is damaged; restore the store from a backup"):
        OutboxEntry.decode("7-t", stored)


# Snapshots after a sleep


@pytest.mark.parametrize("erased", [False, True])
def test_what_another_has_published_is_followed_by_what_is_stored(erased: bool) -> None:
    """The entry is gone when it is to be removed, so what was sent came late, and must not be the last word."""

    async def scenario(bench: Bench) -> None:
        await bench.overtaken("a")
        if erased:
            bench.store._shard(0).customers.clear()
        bench.publisher.release()
        await eventually(lambda: bench.outbox.pending == 0)
        ((customer, snapshot),) = bench.publisher.snapshots[0].items()
        assert len(bench.publisher.snapshots) == 1
        assert customer == "a"
        if erased:
            assert snapshot is None
        else:
            assert snapshot is not None
            said = SNAPSHOT.validate_json(snapshot)
            assert (said["sequence"], said["segments"]["lifecycle"]) == (1, "new")

    run(scenario)


def test_snapshots_are_put_right_until_they_are() -> None:
    """A customer who moves in between is told again."""

    async def scenario(bench: Bench) -> None:
        entry = bench.commit("a").entry
        assert entry is not None
        sent = bench.publisher.publish_snapshots

        async def moved(snapshots: Mapping[str, bytes | None]) -> None:
            await sent(snapshots)
            if len(bench.publisher.snapshots) == 1:
                table = bench.processor.table
                row = pack(table, layout_of(table), np.array([0]))[0]
                bench.store._shard(0).customers["a"] = row[:4] + (2).to_bytes(4, "little") + row[8:]

        bench.publisher.publish_snapshots = moved  # type: ignore[method-assign]
        await put_right(bench.store, bench.publisher, 0, [entry])
        assert [SNAPSHOT.validate_json(each["a"] or b"")["sequence"] for each in bench.publisher.snapshots] == [1, 2]

    run(scenario)


def test_snapshots_are_not_sent_again_without_need() -> None:
    """Whoever removes its own entries has sent them in order."""

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        await bench.outbox.put(bench.commit("a"), None)
        await eventually(lambda: bench.outbox.pending == 0)
        assert bench.publisher.snapshots == []

    run(scenario)


def test_what_a_reload_interrupts_is_looked_at_again() -> None:
    """What was sent before the shard was loaded again, and another has published, is put right by the next start."""

    async def scenario(bench: Bench) -> None:
        await bench.overtaken("a")
        await bench.outbox.stop(0)
        bench.publisher.release()
        bench.load()
        bench.outbox.start(bench.header)
        await eventually(lambda: bench.outbox.pending == 0)
        assert [list(each) for each in bench.publisher.snapshots] == [["a"]]

    run(scenario)


def test_snapshots_of_a_shard_that_is_built_again_are_left_alone() -> None:
    """Nobody is removed because nobody is there yet; it is looked at again once all are."""

    async def scenario(bench: Bench) -> None:
        await bench.overtaken("a")
        time, bench.store._shard(0).time = bench.store._shard(0).time, None
        bench.publisher.release()
        await eventually(lambda: bench.outbox.pending == 0)
        assert bench.publisher.snapshots == []
        bench.store._shard(0).time = time
        await bench.outbox.put(bench.commit("b"), None)
        await eventually(lambda: bench.outbox.pending == 0)
        assert [sorted(each) for each in bench.publisher.snapshots] == [["a", "b"]]

    run(scenario)


def test_snapshots_of_customers_who_have_moved() -> None:
    """A worker that slept through a repartition does not empty them: they are on another shard now."""

    async def scenario(bench: Bench) -> None:
        mover = next(name for name in "abcdefgh" if partition_of(name.encode(), 2) == 1)
        entry = bench.commit(mover).entry
        assert entry is not None
        for shard in (0, 1):
            bench.store.claim(shard, "t")
        assert move(bench.store, 0, 1, 2, "t") == 1
        bench.store.register(2, "g")
        await put_right(bench.store, bench.publisher, 0, [entry])
        (sent,) = bench.publisher.snapshots
        assert SNAPSHOT.validate_json(sent[mover] or b"")["segments"] == {"lifecycle": "new"}

    run(scenario)


def test_messages_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard waits when too many messages do, though they are of few commits; one entry always may."""
    monkeypatch.setattr("streams.outbox._MOST_MESSAGES", 2)

    async def scenario(bench: Bench) -> None:
        bench.outbox.start(bench.header)
        await eventually(lambda: bench.outbox.pending == 0)
        bench.publisher.block()
        for customer in ("a", "b"):
            await bench.outbox.put(bench.commit(customer), None)
        third = asyncio.create_task(bench.outbox.put(bench.commit("c"), None))
        await settle()
        assert not third.done()
        bench.publisher.release()
        await third
        await eventually(lambda: bench.published == ["a", "b", "c"])
        await bench.outbox.stop(1.0)

    run(scenario)
