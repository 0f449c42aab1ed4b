"""Shards: which are ours, where they are read from, what of them is published, and what a person must mend."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP
from prometheus_client import REGISTRY

from models.errors import StateError
from models.events import ROLES, Role
from models.instants import NEVER, SECOND
from models.partitioner import partition_of
from streams.errors import FleetMismatch, OffsetGap, PublishRefused, StaleOwner, StoreUnavailable
from streams.kafka.transport import FetchedRecords, LogRange, Progress
from streams.processor import Clock
from streams.rebuild import done
from streams.shards import start_of
from tests.unit.build import Event, Rec, at, erasure, make_policy, purchase, record, signup, tick
from tests.unit.fakes import (
    SAMPLES,
    FakeConsumer,
    FakeKafka,
    FakePublisher,
    FakeWorker,
    FaultyStore,
    eventually,
    processor_on,
    settle,
    threadless,
    without_pauses,
)

NOW = at(60) / SECOND


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)
    threadless(monkeypatch)


class Fleet:
    """Two shards' worth of topics, a store, and the workers that share them."""

    def __init__(self, partitions: int = 2, committed: int | None = 0) -> None:
        self.kafka = FakeKafka(partitions, committed)
        self.kafka.now = NOW
        self.store, self.publisher = FaultyStore(), FakePublisher()
        self.workers: list[FakeWorker] = []

    def worker(self, **how: Any) -> FakeWorker:
        """A further worker."""
        worker = FakeWorker(self.kafka, self.store, self.publisher, **how)
        self.workers.append(worker)
        return worker

    def customer(self, shard: int, which: int = 0) -> str:
        """A customer who lives on the shard."""
        names = (f"c{i}" for i in range(1000))
        found = [name for name in names if partition_of(name.encode(), self.kafka.partitions) == shard]
        return found[which]

    @property
    def moves(self) -> list[tuple[str, str | None, str, bool]]:
        """What was published: customer, label, cause, backfill."""
        return [(c["customer_id"], c["to"], c["cause"], c["backfill"]) for c in self.publisher.once()]


def run(scenario: Callable[[Fleet], Coroutine[Any, Any, None]], **how: Any) -> None:
    """A scenario with a fleet of its own, whose workers are stopped at the end."""

    async def whole() -> None:
        fleet = Fleet(**how)
        try:
            await scenario(fleet)
        finally:
            for worker in fleet.workers:
                await worker.kill()

    asyncio.run(whole())


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


# Where a partition is read from

HERE = TP("shop.purchases", 3)
WHERE = "shop.purchases, partition 3"


@pytest.mark.parametrize(
    ("log", "stored", "start", "history"),
    [
        (LogRange(0, 0, None), None, 0, 0),
        (LogRange(0, 50, None), None, 0, 50),
        (LogRange(20, 50, None), None, 20, 50),
        (LogRange(0, 50, 30), None, 0, 30),
        (LogRange(0, 50, 0), None, 0, 0),
        (LogRange(0, 50, 30), 30, 30, 30),
        (LogRange(0, 50, 30), 10, 10, 30),
        (LogRange(0, 50, 30), 40, 40, 30),
        (LogRange(0, 50, None), 40, 40, 0),
        (LogRange(20, 50, 30), 20, 20, 30),
        (LogRange(20, 50, 10), 50, 50, 10),
        (LogRange(0, 50, None), 0, 0, 0),
        (LogRange(50, 50, 50), 50, 50, 50),
    ],
)
def test_where_a_partition_is_read_from(log: LogRange, stored: int | None, start: int, history: int) -> None:
    """The store's offset if it has one. Else everything there is: history up to the commit, or up to the end."""
    assert start_of(HERE, log, stored) == (start, history)


GAPS = [
    (
        LogRange(20, 50, 30),
        None,
        f"{WHERE}: Redis holds no state, the group had committed offset 30, and Kafka has deleted everything below 20. "
        "Restore Redis from a backup; or, to rebuild from what Kafka still has, delete the group's committed offsets "
        "and start again",
    ),
    (
        LogRange(20, 50, 30),
        19,
        f"{WHERE}: Redis stands at offset 19, and Kafka has deleted everything below 20. Restore a newer backup of "
        "Redis; or, to rebuild from what Kafka still has, use another SEGMENTER_NAMESPACE and SEGMENTER_GROUP",
    ),
    (
        LogRange(0, 50, 30),
        51,
        f"{WHERE}: Redis stands at offset 51, and the log ends at 50: the topic was recreated or truncated. Restore "
        "the topic; or, to start over, use another SEGMENTER_NAMESPACE and SEGMENTER_GROUP",
    ),
]


@pytest.mark.parametrize(("log", "stored", "sentence"), GAPS, ids=["no state", "deleted", "recreated"])
def test_a_gap_is_told_in_a_sentence(log: LogRange, stored: int | None, sentence: str) -> None:
    """It names the partition, what is stored, what Kafka has, and what the operator can do."""
    with pytest.raises(OffsetGap) as told:
        start_of(HERE, log, stored)
    assert str(told.value) == sentence


def test_what_the_sentences_advise_works() -> None:
    """Without the group's commit, or with another namespace and group, the start from what is left succeeds."""
    assert start_of(HERE, LogRange(20, 50, None), None) == (20, 50)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_worker_starts_over_a_gap(which: int) -> None:
    """An assignment with a gap fails with OffsetGap, and the stored state stays as it was."""

    async def scenario(fleet: Fleet) -> None:
        role: Role = "purchases"
        log, stored, _ = GAPS[which]
        tp = TP(role, 0)
        fleet.kafka.logs[tp] = [Rec(None)] * log.end
        fleet.kafka.first[tp], fleet.kafka.committed[tp] = log.first, log.committed or 0
        if stored is not None:
            processor_on(fleet.store).load({"signups": 0, role: stored, "erasures": 0}, {})
        before = fleet.store.peek()
        worker = fleet.worker()
        with pytest.raises(OffsetGap):
            await worker.assign(0)
        assert fleet.store.peek() == before
        assert not worker.shards.owned

    run(scenario, partitions=1)


# Assignment


def test_a_first_start_is_history() -> None:
    """Without commit and state, what is in the topics at that moment is history; what comes later is not."""

    async def scenario(fleet: Fleet) -> None:
        a, b = fleet.customer(0), fleet.customer(0, 1)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        worker = fleet.worker()
        offsets = await worker.assign(0)
        assert set(offsets.values()) == {0}
        fleet.kafka.produce([purchase(b, "2", at(1))])
        await worker.catch_up()
        assert fleet.moves == [(a, "new", "purchase", True), (b, "new", "purchase", False)]

    run(scenario, committed=None)


def test_a_crash_in_a_first_start_forgets_no_history() -> None:
    """Whoever takes over before the history is read still takes it for history."""

    async def scenario(fleet: Fleet) -> None:
        customers = [fleet.customer(0, i) for i in range(4)]
        fleet.kafka.produce(purchase(c, c, at(i)) for i, c in enumerate(customers))
        first = fleet.worker(fetch=1)
        await first.assign(0)
        await eventually(lambda: fleet.store.peek().offsets["purchases"] == 1, first.turn)
        await first.kill()
        fleet.kafka.produce([purchase(fleet.customer(0, 4), "late", at(9))])
        second = fleet.worker()
        await second.assign(0)
        await second.catch_up()
        assert [backfill for *_, backfill in fleet.moves] == [True, True, True, True, False]

    run(scenario, committed=None)


def test_a_store_that_was_lost_is_rebuilt_as_history() -> None:
    """Below the group's commit everything was published once: rebuilt from the beginning, it fires no campaign."""

    async def scenario(fleet: Fleet) -> None:
        customers = [fleet.customer(0, i) for i in range(3)]
        fleet.kafka.produce(purchase(c, c, at(i)) for i, c in enumerate(customers))
        fleet.kafka.committed[TP("purchases", 0)] = 2
        rewinds = sample("segmenter_rewinds_total") or 0.0
        worker = fleet.worker()
        assert (await worker.assign(0))[TP("purchases", 0)] == 0
        assert sample("segmenter_rewinds_total") == rewinds + 1
        await worker.catch_up()
        assert [backfill for *_, backfill in fleet.moves] == [True, True, False]

    run(scenario)


def test_an_emptied_store_is_claimed_anew() -> None:
    """While it is rebuilt, nobody else may take the namespace for a fleet of other partitions."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        assert fleet.store.partitions() == 2
        fleet.store._shards.clear()
        fleet.store._fleet = None
        fleet.kafka.produce([purchase(fleet.customer(0), "1", at(0))])
        await worker.catch_up()
        assert fleet.store.partitions() == 2
        with pytest.raises(FleetMismatch):
            fleet.store.register(3, "segmenter")

    run(scenario)


def test_a_namespace_of_another_fleet_is_not_touched() -> None:
    """Shards of another number of partitions hold other customers."""

    async def scenario(fleet: Fleet) -> None:
        fleet.store.register(3, "segmenter")
        with pytest.raises(FleetMismatch):
            await fleet.worker().assign(0)
        assert fleet.store.peek().owner is None

    run(scenario)


def test_more_partitions_than_there_is_state_for_are_refused() -> None:
    """Whether one input topic was given more or all: customers lie elsewhere now, and nothing is touched."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        before = fleet.store.peek().owner
        ours = {TP(role, 0) for role in ROLES}
        for grown in ({TP("purchases", 2)}, {TP(role, number) for role in ROLES for number in (1, 2)}):
            ranges = {tp: LogRange(0, 0, None) for tp in ours | grown}
            with pytest.raises(FleetMismatch, match=r"more than the 2 partitions.*segmenter repartition"):
                await worker.shards.assigned(ranges)
        assert fleet.store.peek().owner == before

    run(scenario)


def test_a_topic_that_was_deleted_is_named() -> None:
    """A shard of which a topic is missing is not taken: there is nothing right to do without it."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        left = {TP(role, 0): LogRange(0, 0, None) for role in ROLES if role != "purchases"}
        with pytest.raises(FleetMismatch, match=r"partition 0 without that of purchases.*segmenter topics create"):
            await worker.shards.assigned(left)
        assert fleet.store.peek().owner is None

    run(scenario)


def test_a_store_that_was_lost_is_rebuilt_with_the_lapses_that_were_published() -> None:
    """Lapses that the clock had published are history too, although they are no records; later ones are not."""

    async def scenario(fleet: Fleet) -> None:
        a, b = fleet.customer(0), fleet.customer(0, 1)
        fleet.kafka.now = at(92) / SECOND
        fleet.kafka.produce([purchase(a, "1", at(0)), purchase(b, "2", at(5))])
        worker = fleet.worker()
        await worker.assign(0)
        await worker.catch_up()
        await eventually(lambda: fleet.kafka.told_until.get(TP("purchases", 0)) == at(92), worker.turn)
        assert [move[0] for move in fleet.moves] == [a, b, a]
        await worker.kill()
        before = fleet.publisher.once()
        fleet.store, fleet.publisher = FaultyStore(), FakePublisher()
        fleet.kafka.now = at(100) / SECOND
        again = fleet.worker()
        await again.assign(0)
        await again.catch_up()
        assert sorted(fleet.moves) == sorted(
            [
                (a, "new", "purchase", True), (b, "new", "purchase", True),
                (a, "lapsed", "time", True), (b, "lapsed", "time", False),
            ]
        )  # fmt: skip
        ids = [change["change_id"] for change in fleet.publisher.once()]
        assert ids[:3] == [change["change_id"] for change in before]

    run(scenario)


def test_the_store_decides_where_reading_begins() -> None:
    """Not Kafka's commit: what is behind it is not folded again, what is ahead of it is not skipped."""

    async def scenario(fleet: Fleet) -> None:
        a, b = fleet.customer(0), fleet.customer(0, 1)
        fleet.kafka.produce([purchase(a, "1", at(0)), purchase(b, "2", at(1))])
        first = fleet.worker()
        await first.assign(0)
        await first.catch_up()
        await first.kill()
        fleet.kafka.committed[TP("purchases", 0)] = 0
        second = fleet.worker()
        assert (await second.assign(0))[TP("purchases", 0)] == 2
        fleet.kafka.produce([purchase(a, "3", at(2)), purchase(a, "4", at(3))])
        await second.catch_up()
        assert fleet.moves[-1] == (a, "regular", "purchase", False)

    run(scenario)


def test_every_topic_of_every_shard_is_positioned() -> None:
    """An assignment of several shards gives a position for each partition, and a worker for each shard."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        positions = await worker.assign(0, 1, 2)
        assert positions == {SAMPLES: 0} | {TP(role, shard): 0 for role in ROLES for shard in range(3)}
        assert set(worker.shards.owned) == {0, 1, 2}
        assert sample("segmenter_shards") == 3
        await worker.assign()
        assert not worker.shards.owned
        assert sample("segmenter_shards") == 0

    run(scenario, partitions=3)


def test_an_owned_shard_is_kept() -> None:
    """A rebalance that leaves a shard here neither loads it again nor loses what waits in it."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        worker = fleet.worker()
        await worker.assign(0, 1)
        await worker.catch_up()
        runner, token = worker.shards.owned[0], worker.shards.owned[0].processor.token
        fleet.kafka.produce([purchase(a, "2", at(1)), purchase(a, "3", at(2))])
        worker.consumer.unknown.add("signups")
        worker.turn()
        await settle()
        assert runner.waiting("purchases") == 2
        positions = await worker.assign(0)
        assert worker.shards.owned == {0: runner}
        assert runner.processor.token == token
        assert positions[TP("purchases", 0)] == 3
        worker.consumer.unknown.clear()
        await worker.catch_up()
        assert [move[:3] for move in fleet.moves] == [(a, "new", "purchase"), (a, "regular", "purchase")]

    run(scenario)


def test_a_shard_that_was_elsewhere_meanwhile_is_loaded_again() -> None:
    """If another worker took and gave back a shard without our noticing, what we have of it is worthless."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        first, second = fleet.worker(), fleet.worker()
        await first.assign(0)
        await first.catch_up()
        stale = first.shards.owned[0]
        await second.assign(0)
        fleet.kafka.produce([purchase(a, "2", at(1))])
        await second.catch_up()
        await second.assign()
        assert (await first.assign(0))[TP("purchases", 0)] == 2
        assert first.shards.owned[0] is not stale
        fleet.kafka.produce([purchase(a, "3", at(2))])
        await first.catch_up()
        assert [move[1] for move in fleet.moves] == ["new", "regular"]

    run(scenario)


def test_a_shard_that_failed_is_loaded_again_when_it_is_assigned() -> None:
    """An assignment starts a dead shard anew."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        broken = worker.shards.owned[0]

        def fold(*_: Any) -> None:
            raise ZeroDivisionError

        broken.processor.fold = fold  # type: ignore[method-assign,assignment]
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        for batch in worker.consumer.fetched():
            worker.shards.fetched(batch)
        await eventually(broken.failed)
        with pytest.raises(ZeroDivisionError):
            worker.shards.watch(joined=True)
        await worker.assign(0)
        await worker.catch_up()
        assert fleet.moves == [(a, "new", "purchase", False)]

    run(scenario)


def test_a_shard_that_leaves_is_finished_first() -> None:
    """When a shard is revoked its changes are published before the next owner may begin."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        worker = fleet.worker()
        await worker.assign(0)
        await eventually(lambda: fleet.store.peek().offsets["purchases"] == 1, worker.turn)
        await worker.assign()
        assert fleet.moves == [(a, "new", "purchase", False)]
        assert fleet.store.peek().entries == []
        assert worker.shards.published() == {}

    run(scenario)


def test_metrics_of_a_shard_leave_with_it() -> None:
    """Sums over workers would count a shard twice that moved."""

    async def scenario(fleet: Fleet) -> None:
        labels = {"dimension": "lifecycle", "segment": "new", "shard": "0"}
        fleet.kafka.produce([purchase(fleet.customer(0), "1", at(0))])
        worker = fleet.worker()
        await worker.assign(0)
        await worker.catch_up()
        worker.turn()
        assert sample("segmenter_segment_customers", **labels) == 1
        assert sample("segmenter_consumer_lag_records", topic="purchases", partition="0") == 0
        await worker.assign()
        assert sample("segmenter_segment_customers", **labels) is None
        assert sample("segmenter_consumer_lag_records", topic="purchases", partition="0") is None
        assert sample("segmenter_outbox_pending", shard="0") is None
        assert sample("segmenter_lapse_lag_seconds", shard="0") is None

    run(scenario)


@pytest.mark.parametrize("at_once", [False, True])
def test_two_workers_share_the_work(at_once: bool) -> None:
    """Each folds its own shards; nobody's changes are missing or doubled when a shard moves.

    If the new owner begins while the old one still finishes, some may be published twice, with the same id.
    """

    async def scenario(fleet: Fleet) -> None:
        customers = [fleet.customer(shard, i) for i in range(5) for shard in (0, 1)]
        first, second = fleet.worker(fetch=1), fleet.worker(fetch=1)
        await first.assign(0, 1)
        fleet.kafka.produce(purchase(c, f"1{c}", at(i)) for i, c in enumerate(customers))
        await eventually(lambda: fleet.store.peek(1).offsets["purchases"] >= 2, first.turn)
        if at_once:
            await asyncio.gather(first.assign(0), second.assign(1))
        else:
            await first.assign(0)
            await second.assign(1)
        fleet.kafka.produce(purchase(c, f"2{c}", at(20 + i)) for i, c in enumerate(customers))
        fleet.kafka.produce(purchase(c, f"3{c}", at(40 + i)) for i, c in enumerate(customers))
        await asyncio.gather(first.catch_up(), second.catch_up())
        assert at_once or len(fleet.publisher.changes) == len(fleet.publisher.once())
        assert sorted(fleet.moves) == sorted(
            (customer, label, "purchase", False) for customer in customers for label in ("new", "regular")
        )

    run(scenario)


@pytest.mark.parametrize("method", ["header", "acquire", "rows"])
@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_store_that_is_away_for_a_moment_delays_an_assignment(method: str, fault: str) -> None:
    """The assignment is tried again, and shards that were loaded already are not loaded twice."""

    async def scenario(fleet: Fleet) -> None:
        a, b = fleet.customer(0), fleet.customer(1)
        fleet.kafka.produce([purchase(a, "1", at(0)), purchase(b, "2", at(1))])
        fleet.store.fail(method, None, fault, fault)
        worker = fleet.worker()
        await worker.assign(0, 1)
        assert not fleet.store.faults[method]
        await worker.catch_up()
        assert sorted(move[0] for move in fleet.moves) == sorted([a, b])

    run(scenario)


def test_a_store_that_stays_away_fails_the_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded while the store's own error is told."""
    monkeypatch.setattr("streams.shards._ASSIGN_WITHIN", 0.0)

    async def scenario(fleet: Fleet) -> None:
        fleet.store.fail("header", *["before"] * 1_000)
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await fleet.worker().assign(0)

    run(scenario)


def test_state_that_cannot_be_read_is_not_tried_again() -> None:
    """Nothing is gained by waiting for state that a newer version wrote, or that is in another currency."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        first = fleet.worker()
        await first.assign(0)
        await first.catch_up()
        await first.kill()
        fleet.store.lose_activations()
        with pytest.raises(StateError, match="the stored amounts are in USD, the policy's base is EUR"):
            await fleet.worker(policy=make_policy(base="EUR")).assign(0)

    run(scenario)


# Fetches


def test_what_was_fetched_before_a_positioning_is_dropped() -> None:
    """A fetch of an earlier epoch is no record of this shard any more, even if its offsets would fit."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        worker = fleet.worker()
        await worker.assign(0)
        (old,) = worker.consumer.fetched()
        await worker.assign(0)
        worker.shards.fetched(old)
        assert worker.shards.owned[0].waiting("purchases") == 0
        assert worker.shards.owned[0].next_offsets["purchases"] == 0
        await worker.catch_up()
        assert fleet.moves == [(a, "new", "purchase", False)]

    run(scenario)


def test_what_belongs_to_no_shard_of_ours_is_dropped() -> None:
    """A fetch that arrives after the shard has left is nobody's."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        tp = TP("purchases", 1)
        worker.shards.fetched(FetchedRecords(tp, 0, 1, [Rec(b"")], worker.consumer.epoch(tp)))
        await settle()
        assert fleet.store.peek(1).offsets == {}

    run(scenario)


def test_a_topic_is_read_to_its_end_only_when_the_shard_has_it_all() -> None:
    """What was fetched and is still on its way to the shard may come before what waits there."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([signup(a, "1", at(0)), purchase(a, "2", at(1))])
        worker = fleet.worker()
        await worker.assign(0)
        late = {batch.tp.topic: batch for batch in worker.consumer.fetched()}
        worker.shards.fetched(late["purchases"])
        await settle()
        assert fleet.store.peek().offsets["purchases"] == 0
        worker.shards.fetched(late["signups"])
        await worker.catch_up()
        assert fleet.moves == [(a, "new", "signup", False)]

    run(scenario)


def test_a_full_buffer_pauses_its_partition() -> None:
    """More than buffer_size records that wait pause their partition; half of it lets it go on."""

    async def scenario(fleet: Fleet) -> None:
        customer = fleet.customer(0)
        fleet.kafka.produce(purchase(customer, str(i), at(i)) for i in range(12))
        worker = fleet.worker(fetch=2, buffer_size=4, batch_size=1)
        await worker.assign(0)
        worker.consumer.unknown.add("signups")
        for _ in range(10):
            worker.turn()
            await settle(5)
        tp = TP("purchases", 0)
        assert worker.consumer.paused == {tp}
        assert worker.shards.owned[0].waiting("purchases") == 6
        worker.consumer.unknown.clear()
        left: list[int] = []

        def look() -> None:
            worker.shards.watch(joined=True)
            if tp in worker.consumer.paused:
                left.append(worker.shards.owned[0].waiting("purchases"))

        await eventually(lambda: not worker.consumer.paused, look)
        assert min(left) == 4  # whole fetches, of 2 records
        await worker.catch_up()
        assert fleet.store.peek().offsets["purchases"] == 12
        assert not worker.consumer.paused

    run(scenario)


def test_a_paused_partition_goes_on_after_a_reload() -> None:
    """What waited was dropped and is read again: nothing may stay paused."""

    async def scenario(fleet: Fleet) -> None:
        customer = fleet.customer(0)
        fleet.kafka.produce(daily(customer, 8))
        worker = fleet.worker(fetch=8, buffer_size=4, batch_size=3)
        await worker.assign(0)
        fleet.store.fail("commit", "before")
        await worker.catch_up()
        assert fleet.store.peek().offsets["purchases"] == 8
        assert not worker.consumer.paused

    run(scenario)


def daily(customer: str, count: int) -> list[Event]:
    """Purchases, one a day."""
    return [purchase(customer, str(i), at(i)) for i in range(count)]


# Published


def test_only_what_the_broker_acknowledged_may_be_committed() -> None:
    """published() follows the broker, not the store; a new shard begins with what the store vouches for."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0)), purchase(a, "2", at(1))])
        worker = fleet.worker()
        fleet.publisher.block()
        await worker.assign(0)
        await eventually(lambda: fleet.store.peek().offsets["purchases"] == 2, worker.turn)
        await settle()
        assert worker.shards.published()[TP("purchases", 0)] == 0
        fleet.publisher.release()
        await worker.catch_up()
        assert worker.shards.published() == {
            TP("signups", 0): 0,
            TP("purchases", 0): 2,
            TP("erasures", 0): 0,
        }

    run(scenario)


def test_leftovers_count_as_unpublished() -> None:
    """A new owner commits nothing to Kafka before the entries that it found have been acknowledged."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        first = fleet.worker()
        fleet.publisher.block()
        await first.assign(0)
        await eventually(lambda: fleet.store.peek().offsets["purchases"] == 1, first.turn)
        await first.kill()
        second = fleet.worker()
        await second.assign(0)
        await settle()
        assert second.shards.published() == {}
        fleet.publisher.release()
        await second.catch_up()
        assert second.shards.published()[TP("purchases", 0)] == 1

    run(scenario)


def test_stop_publishes_and_still_tells_how_far_that_is() -> None:
    """After a stop the last commit to Kafka can be made."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0))])
        worker = fleet.worker()
        assert worker.shards.published_time(0) == NEVER
        await worker.assign(0)
        await eventually(lambda: fleet.store.peek().offsets["purchases"] == 1, worker.turn)
        await worker.shards.stop(10)
        assert worker.shards.published_time(0) == at(0)
        assert fleet.moves == [(a, "new", "purchase", False)]
        assert worker.shards.published()[TP("purchases", 0)] == 1

    run(scenario)


# Watching


def test_what_ended_a_shard_is_raised() -> None:
    """Whether the shard's own task or its outbox ended."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        worker.shards.watch(joined=True)
        fleet.publisher.faults.append("before")
        fleet.kafka.produce([purchase(fleet.customer(0), "1", at(0))])
        with pytest.raises(PublishRefused):
            await worker.catch_up()

    run(scenario)


def test_a_gap_that_shows_while_a_shard_is_loaded_again_ends_the_worker() -> None:
    """A restored store that is too old is found by the shard that runs, and watch() raises the sentence."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        worker = fleet.worker()
        await worker.assign(0)
        fleet.store.keep()
        fleet.kafka.produce([purchase(a, "1", at(0))])
        await worker.catch_up()
        fleet.kafka.first[TP("purchases", 0)] = 1
        fleet.store.restore()
        fleet.kafka.produce([purchase(a, "2", at(1))])
        with pytest.raises(OffsetGap, match="Redis stands at offset 0, and Kafka has deleted everything below 1"):
            await worker.catch_up()

    run(scenario)


def test_lag_is_what_is_not_committed() -> None:
    """Records still in Kafka and records that wait here, by partition."""

    async def scenario(fleet: Fleet) -> None:
        fleet.kafka.produce(daily(fleet.customer(0), 5))
        worker = fleet.worker(fetch=2)
        await worker.assign(0)
        worker.shards.watch(joined=True)
        assert sample("segmenter_consumer_lag_records", topic="purchases", partition="0") == 5
        for batch in worker.consumer.fetched():
            worker.shards.fetched(batch)
        worker.shards.watch(joined=True)
        assert sample("segmenter_consumer_lag_records", topic="purchases", partition="0") == 5
        await worker.catch_up()
        worker.shards.watch(joined=True)
        assert sample("segmenter_consumer_lag_records", topic="purchases", partition="0") == 0
        assert sample("segmenter_consumer_lag_records", topic="signups", partition="0") == 0

    run(scenario)


def test_watching_before_an_assignment_is_harmless() -> None:
    """A worker without shards has nothing to report."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        worker.shards.watch(joined=False)
        worker.shards.watch(joined=True)
        assert worker.shards.published() == {}
        await worker.shards.stop(1)

    run(scenario)


def test_a_spare_worker_is_no_stalled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shard a worker makes progress as long as it is in its group; if it cannot join, it does not."""
    now = [1000.0]
    monkeypatch.setattr("streams.shards.time.monotonic", lambda: now[0])

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        since = worker.shards.last_progress()
        now[0] += 100
        worker.shards.watch(joined=False)
        assert worker.shards.last_progress() == since
        worker.shards.watch(joined=True)
        assert worker.shards.last_progress() == now[0]

    run(scenario)


def test_the_slowest_shard_tells_the_progress() -> None:
    """One shard that hangs makes the worker stall, however busy the others are."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0, 1)
        worker.shards.owned[1].last_progress = 5.0
        worker.consumer.unknown.add("signups")
        assert worker.shards.last_progress() == 5.0

    run(scenario)


# Failing on the way


@pytest.mark.parametrize("fault", ["before", "after", "stolen"])
def test_a_commit_that_fails_costs_nothing(fault: str) -> None:
    """The shard is loaded and positioned anew; the other shard goes on meanwhile."""

    async def scenario(fleet: Fleet) -> None:
        a, b = fleet.customer(0), fleet.customer(1)
        worker = fleet.worker(fetch=1)
        await worker.assign(0, 1)
        fleet.store.fail("commit", None, None, fault)
        fleet.kafka.produce(event for c in (a, b) for event in daily(c, 4))
        await worker.catch_up()
        assert len(fleet.publisher.once()) == len(fleet.publisher.changes) == 4
        assert sorted(move[:2] for move in fleet.moves) == sorted((c, to) for c in (a, b) for to in ("new", "regular"))

    run(scenario)


@pytest.mark.parametrize(
    "error", [KafkaConnectionError("away"), StaleOwner("the shard's partitions are being reassigned")]
)
def test_a_shard_waits_for_kafka_to_be_loaded_again(error: Exception) -> None:
    """As long as Kafka does not say where the partitions begin and end, or gives them away, it tries again."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        worker.consumer.errors.extend([error, error])
        fleet.store.fail("commit", "before")
        fleet.kafka.produce(daily(fleet.customer(0), 3))
        await worker.catch_up()
        assert not worker.consumer.errors
        assert [move[1] for move in fleet.moves] == ["new", "regular"]

    run(scenario)


def test_a_shard_that_leaves_while_it_cannot_be_loaded() -> None:
    """A revocation ends the attempts; the next owner begins where the store stands."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        first, second = fleet.worker(), fleet.worker()
        await first.assign(0)
        first.consumer.errors.extend([KafkaConnectionError("away")] * 100_000)
        fleet.store.fail("commit", "before")
        fleet.kafka.produce(daily(a, 3))
        await eventually(lambda: len(first.consumer.errors) < 100_000, first.turn)
        await first.assign()
        assert not first.shards.owned
        await second.assign(0)
        await second.catch_up()
        assert [move[1] for move in fleet.moves] == ["new", "regular"]

    run(scenario)


def test_a_zombie_cannot_commit() -> None:
    """A worker that does not know it lost its shard is refused; the shard's changes come from the new owner alone."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        zombie, owner = fleet.worker(), fleet.worker()
        await zombie.assign(0)
        await owner.assign(0)
        zombie.consumer.errors.extend([StaleOwner("reassigned")] * 100_000)
        fleet.kafka.produce(daily(a, 3))
        for batch in zombie.consumer.fetched():
            zombie.shards.fetched(batch)
        await eventually(lambda: len(zombie.consumer.errors) < 100_000)
        assert fleet.store.peek().offsets["purchases"] == 0
        await owner.catch_up()
        assert len(fleet.publisher.changes) == 2
        assert fleet.store.peek().owner == owner.shards.owned[0].processor.token

    run(scenario)


def test_topics_are_merged_over_a_reload() -> None:
    """Signups, purchases and erasures of one customer keep their order whatever fails."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        worker = fleet.worker(fetch=1, clock=Clock.EVENT)
        await worker.assign(0)
        fleet.store.fail("commit", "before", "after", None, "stolen")
        fleet.kafka.produce(
            [signup(a, "1", at(0)), purchase(a, "2", at(1)), erasure(a, "3", at(2)), purchase(a, "4", at(3))]
        )
        await worker.catch_up()
        assert [move[1:3] for move in fleet.moves] == [("new", "signup"), (None, "erasure"), ("new", "purchase")]

    run(scenario)


def test_the_topics_may_have_any_names() -> None:
    """Roles are what the settings say; Kafka's names appear in positions and in what is published."""

    async def scenario(fleet: Fleet) -> None:
        names: Mapping[str, str] = {
            "signups_topic": "crm.signups", "purchases_topic": "shop.sales", "erasures_topic": "gdpr",
        }  # fmt: skip
        worker = fleet.worker(**names)
        log = LogRange(0, 0, 0)
        tps = {TP(name, 0): log for name in names.values()}
        positions = await worker.shards.assigned(tps)
        assert positions == dict.fromkeys(tps, 0)
        await eventually(worker.shards.published)
        assert worker.shards.published() == dict.fromkeys(tps, 0)
        await worker.consumer.seek_to(positions)
        batch = FetchedRecords(TP("shop.sales", 0), 0, 1, [Rec(b"nonsense", b"x", 0, 0)], 1)
        worker.shards.fetched(batch)
        worker.kafka.logs.update({tp: [] for tp in tps})
        await eventually(lambda: fleet.publisher.dead_letters)
        assert fleet.publisher.dead_letters[0]["topic"] == "shop.sales"

    run(scenario)


def test_what_a_worker_says_of_its_shards() -> None:
    """Where each stands in the log and in time, and what of it is published."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0, 1)
        customer = fleet.customer(1)
        fleet.kafka.produce([purchase(customer, "1", at(0))])
        await worker.catch_up()
        first, second = worker.shards.overview()
        assert (first["shard"], first["customers"]) == (0, 0)
        assert (second["shard"], second["customers"], second["policy_version"]) == (1, 1, 1)
        assert (
            second["offsets"] == second["end"] == second["published"] == {"signups": 0, "purchases": 1, "erasures": 0}
        )
        assert (second["waiting"], second["outbox"]) == (dict.fromkeys(ROLES, 0), 0)
        assert second["time"] >= "2024"
        await worker.assign(1)
        assert [each["shard"] for each in worker.shards.overview()] == [1]

    run(scenario)


# Rebuilt


@pytest.mark.parametrize("clock", list(Clock))
def test_a_shard_that_is_rebuilt_under_a_worker(clock: Clock) -> None:
    """Nothing is told twice, what comes meanwhile is told once, and nobody is alarmed. Under either clock."""

    def counted() -> list[float | None]:
        return [
            sample("segmenter_rewinds_total"),
            sample("segmenter_refused_commits_total", reason="stale_owner"),
            sample("segmenter_dead_letters_total", code="invalid_field"),
        ]

    async def scenario(fleet: Fleet) -> None:
        a, b, c = (fleet.customer(0, which) for which in range(3))
        worker = fleet.worker(fetch=2, batch_size=2, clock=clock)
        fleet.kafka.now = at(61) / SECOND
        await worker.assign(0)
        fleet.kafka.produce([signup(a, "1", at(0)), purchase(a, "2", at(0)), purchase(b, "3", at(1))])
        fleet.kafka.produce([purchase(b, "4", at(1), "-1.00"), purchase(b, "5", at(60)), purchase(b, "6", at(60))])
        await worker.catch_up()
        fleet.kafka.now = at(100) / SECOND + 1
        fleet.kafka.append("purchases", record(tick(at(100)), timestamp=at(100) // 1000))
        await worker.catch_up()
        told, letters, before = fleet.moves, len(fleet.publisher.dead_letters), dict(fleet.store._shard(0).customers)
        assert (a, "lapsed", "time", False) in told
        assert (letters, fleet.publisher.dead_letters[0]["code"]) == (1, "invalid_field")

        counts = counted()
        fleet.store.begin_rebuild("r")
        assert fleet.store.rewind(0, "r", 1)
        assert not fleet.store._shard(0).customers
        fleet.kafka.produce([purchase(c, "7", at(101))])
        await worker.shards.follow()
        fleet.kafka.now = at(101) / SECOND + 1
        await worker.catch_up()
        assert done(fleet.store, 1, "r").complete
        after = dict(fleet.store._shard(0).customers)
        assert after.pop(c)
        assert after == before
        assert (fleet.moves, len(fleet.publisher.changes)) == ([*told, (c, "new", "purchase", False)], len(told) + 1)
        assert len(fleet.publisher.dead_letters) == letters
        assert counted() == counts

        fleet.kafka.now = at(400) / SECOND + 1
        fleet.kafka.append("purchases", record(tick(at(400)), timestamp=at(400) // 1000))
        await worker.catch_up()
        assert sorted(fleet.moves[len(told) + 1 :]) == sorted((name, "lapsed", "time", False) for name in (b, c))
        assert len(fleet.publisher.changes) == len(fleet.publisher.once())

    run(scenario, partitions=1)


def test_a_rebuild_goes_on_with_the_next_worker() -> None:
    """Killed half-way, whatever the wall clock says meanwhile: a deadline that was told is not told again."""

    async def scenario(fleet: Fleet) -> None:
        names = [fleet.customer(0, which) for which in range(6)]
        fleet.kafka.now = at(200) / SECOND
        first = fleet.worker(fetch=1, batch_size=1)
        fleet.kafka.produce(purchase(name, f"{name}-{i}", at(i)) for i, name in enumerate(names))
        await first.assign(0)
        await first.catch_up()
        told = len(fleet.publisher.changes)
        assert told == 12
        assert fleet.store.rewind(0, "r", 1)
        fleet.store.begin_rebuild("r")
        await first.shards.follow()
        await eventually(lambda: 0 < fleet.store.peek().offsets["purchases"] < 6, first.turn)
        await first.kill()
        fleet.kafka.now = at(300) / SECOND
        second = fleet.worker(fetch=1, batch_size=1)
        await second.assign(0)
        await second.catch_up()
        assert len(fleet.publisher.changes) == told
        assert fleet.store.peek().offsets["purchases"] == 6

    run(scenario, partitions=1)


class WithMarkers(FakeConsumer):
    """A consumer of topics with a transaction's marker at some offsets: it passes them without handing on anything."""

    def __init__(self, kafka: FakeKafka, fetch: int, markers: Collection[int]) -> None:
        super().__init__(kafka, fetch)
        self.markers = markers
        self.passed: dict[TP, int] = {}

    def progress(self, tp: TP) -> Progress | None:
        found = super().progress(tp)
        return found and found._replace(position=max(found.position, self.passed.get(tp, 0)))

    async def seek_to(self, offsets: Mapping[TP, int]) -> None:
        await super().seek_to(offsets)
        self.passed.clear()

    def fetched(self) -> list[FetchedRecords]:
        before, found = dict(self.read_from), []
        for batch in super().fetched():
            records = [each for each in batch.records if each.offset not in self.markers]
            if records:
                found.append(replace(batch, records=records))
            else:
                self.passed[batch.tp], self.read_from[batch.tp] = batch.end, before[batch.tp]
        return found


def test_a_rebuild_ends_at_a_marker() -> None:
    """The shard was behind a transaction's end, which is no record, and may not come along with one this time."""

    async def scenario(fleet: Fleet) -> None:
        a = fleet.customer(0)
        fleet.kafka.produce([purchase(a, "1", at(0)), purchase(a, "2", at(1)), purchase(a, "marker", at(1))])
        worker = fleet.worker()
        worker.consumer = WithMarkers(fleet.kafka, 3, {2})
        worker.shards.attach(worker.consumer, 1)
        await worker.assign(0)
        await worker.catch_up()
        assert fleet.store.peek().offsets["purchases"] == 3
        worker.consumer.fetch = 1
        fleet.store.begin_rebuild("r")
        assert fleet.store.rewind(0, "r", 1)
        await worker.shards.follow()
        await worker.catch_up()
        assert done(fleet.store, 1, "r").complete
        fleet.kafka.produce([purchase(a, "3", at(2))])
        worker.consumer.fetch = 2  # of which one begins at the marker
        await worker.catch_up()
        assert [move[1] for move in fleet.moves] == ["new", "regular"]

    run(scenario, partitions=1)
