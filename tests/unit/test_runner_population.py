"""Workers and the population: shards that summarise, wait for each other, take cut-offs and other policies."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from models.instants import SECOND
from models.partitioner import partition_of
from models.policy import Policy
from streams.customers import customers_of
from streams.replay import replay
from tests.unit.build import DAY, Event, at, make_policy, purchase, text
from tests.unit.fakes import (
    FakeKafka,
    FakePublisher,
    FakeWorker,
    FaultyStore,
    eventually,
    kill_everything,
    settle,
    threadless,
    without_pauses,
)

WEEK = 7 * DAY
END = at(40)
ABC = '[dimensions.value]\nengine = "pareto"\nclasses = { A = 80, B = 15, C = 5 }\nmargin = 0\n'
CLUSTERS = '[dimensions.kind]\nengine = "cluster"\nclusters = 2\n'
POLICY = make_policy(more=ABC)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)
    threadless(monkeypatch)


class Fleet:
    """A log of two partitions, a store, what was published, and workers on them."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.kafka = FakeKafka(2)
        self.kafka.produce(events)
        self.kafka.now = END / SECOND
        self.store, self.publisher = FaultyStore(), FakePublisher()

    def worker(self, policy: Policy = POLICY, **how: Any) -> FakeWorker:
        return FakeWorker(self.kafka, self.store, self.publisher, policy=policy, **how)

    def expected(self, policy: Policy = POLICY) -> set[str]:
        """The ids of the changes that a replay finds."""
        return {change["change_id"] for change in replay(self.events, policy, shards=2, until=text(END))}

    def found(self) -> set[str]:
        return {change["change_id"] for change in self.publisher.once()}


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def guarded() -> None:
        try:
            await scenario()
        finally:
            await kill_everything()

    asyncio.run(guarded())


def a_month(customers: int = 12) -> list[Event]:
    """Customers of both partitions who buy, some of them again, over a month."""
    events = [purchase(f"c{i:02}", f"e{i}", at(i // 2, i), f"{2**i}.00") for i in range(customers)]
    events += [purchase(f"c{i % 5:02}", f"f{i}", at(10 + i), f"{300 * i}.00") for i in range(20)]
    return events


def test_two_shards_give_what_a_replay_gives() -> None:
    """They stop at the same instants, wait for each other, and take the same cut-offs."""

    async def scenario() -> None:
        fleet = Fleet(a_month())
        worker = fleet.worker()
        await worker.assign(0, 1)
        await worker.catch_up()
        assert fleet.found() == fleet.expected()
        assert "population" in {change["cause"] for change in fleet.publisher.changes}
        assert fleet.store.latest_activation() > 4
        assert {fleet.store.peek(shard).activation for shard in (0, 1)} == {fleet.store.latest_activation()}

    run(scenario)


def test_two_workers_give_what_one_gives() -> None:
    """Whoever finds that all have summarised themselves makes the cut-offs; the other follows."""

    async def scenario() -> None:
        fleet = Fleet(a_month())
        workers = [fleet.worker(), fleet.worker()]
        for number, worker in enumerate(workers):
            await worker.assign(number)

        def turn() -> None:
            for worker in workers:
                worker.turn()

        await eventually(lambda: all(worker.at_rest() for worker in workers), turn)
        assert fleet.found() == fleet.expected()

    run(scenario)


def test_a_shard_without_customers_holds_nobody_up() -> None:
    """Its time passes with the clock, and it says that nobody is there."""

    async def scenario() -> None:
        home = [event for event in a_month(40) if partition_of(event["customer_id"].encode(), 2) == 0]
        fleet = Fleet(home)
        worker = fleet.worker()
        await worker.assign(0, 1)
        await worker.catch_up()
        assert fleet.found() == fleet.expected()
        assert any(change["cause"] == "population" for change in fleet.publisher.changes)

    run(scenario)


def test_a_shard_that_nobody_reads_does_not_stop_the_others() -> None:
    """After a while they go on with the cut-offs of before; once it is read, they take those that it makes possible."""

    async def scenario() -> None:
        fleet = Fleet(a_month())
        worker = fleet.worker(merge_wait=0.0)
        await worker.assign(0)
        await worker.catch_up()
        lifecycle = {change["dimension"] for change in fleet.publisher.changes}
        assert lifecycle == {"lifecycle"}
        assert fleet.store.latest_activation() == 1
        await worker.assign(0, 1)
        await worker.catch_up()
        await worker.shards.follow()
        await worker.catch_up()
        await eventually(lambda: fleet.store.peek(0).activation > 1 and worker.at_rest(), worker.turn)
        assert {c["dimension"] for c in fleet.publisher.changes} == {"lifecycle", "value"}

    run(scenario)


@pytest.mark.parametrize("learner", [None, b"{}"], ids=["nobody learns", "the learner is damaged"])
def test_shards_wait_once_for_who_does_not_learn(learner: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    """Then they take the population's cut-offs without, at each instant at once; a model is taken when there is one."""

    async def scenario() -> None:
        fleet, policy = Fleet(a_month()), make_policy(more=ABC + CLUSTERS)
        worker = fleet.worker(policy=policy, merge_wait=0.05)
        if learner is None:
            fleet.store.learned_model = lambda dimension, as_of: None  # type: ignore[method-assign]
        else:
            fleet.store.commit_learners(None, 0, {"kind": learner}, {})
        await worker.assign(0, 1)
        shards = worker.shards.owned.values()
        await eventually(lambda: all(runner.processor.time > END - WEEK for runner in shards), worker.turn)
        assert fleet.store.latest_activation() > 4
        told = [record for record in caplog.records if getattr(record, "action", "") == "models_missing"]
        assert len(told) == 1
        assert "population" in {change["cause"] for change in fleet.publisher.changes}
        assert "kind" not in {change["dimension"] for change in fleet.publisher.changes}

    run(scenario)


def test_a_damaged_model_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and customers stay where they are."""

    async def scenario() -> None:
        fleet, policy = Fleet(a_month()), make_policy(more=ABC + CLUSTERS)
        fleet.store.learned_model = lambda dimension, as_of: b'{"format":2}'  # type: ignore[method-assign]
        worker = fleet.worker(policy=policy)
        await worker.assign(0, 1)
        await worker.catch_up()
        assert "kind: a stored cluster model was stored in format 2; run a newer version; going on" in caplog.text
        assert "population" in {change["cause"] for change in fleet.publisher.changes}

    run(scenario)


def test_a_policy_reaches_every_worker() -> None:
    """It is applied once, and each shard moves its customers and goes on under it."""

    async def scenario() -> None:
        fleet = Fleet(a_month())
        workers = [fleet.worker(), fleet.worker()]
        for number, worker in enumerate(workers):
            await worker.assign(number)

        def turn() -> None:
            for worker in workers:
                worker.turn()

        def at_rest() -> bool:
            return all(worker.at_rest() for worker in workers)

        await eventually(at_rest, turn)
        before = len(fleet.publisher.once())
        following = make_policy(version=2, more=ABC, dimensions={"lifecycle": ("1d", 2, "2d")})
        workers[0].activations.apply(following, END, backfill=False)
        for worker in workers:
            await worker.shards.follow()
        latest = fleet.store.latest_activation()
        await eventually(lambda: {fleet.store.peek(shard).activation for shard in (0, 1)} == {latest}, turn)
        await eventually(at_rest, turn)
        await settle()
        moved = fleet.publisher.once()[before:]
        assert {change["cause"] for change in moved} == {"policy"}
        assert {change["policy_version"] for change in moved} == {2}
        assert {runner.processor.policy.version for each in workers for runner in each.shards.owned.values()} == {2}
        fleet.kafka.produce([purchase(f"new{i}", f"n{i}", END) for i in range(6)])
        await eventually(at_rest, turn)
        assert {change["policy_version"] for change in fleet.publisher.once()[-6:]} == {2}
        customers = [each for shard in (0, 1) for each in customers_of(fleet.store, shard)]
        assert {each["segments"]["lifecycle"] for each in customers} == {"new", "lapsed"}

    run(scenario)


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
def test_workers_that_are_killed_all_the_time(turns: int) -> None:
    """Summaries, waits and adoptions in between are repeated; what is published is what a replay gives, each once."""

    async def scenario() -> None:
        fleet = Fleet(a_month())
        for _ in range(60):
            worker = fleet.worker(batch_size=3)
            await worker.assign(0, 1)
            for _ in range(turns):
                worker.turn()
                await settle(8)
            await worker.kill()
        worker = fleet.worker()
        await worker.assign(0, 1)
        await worker.catch_up()
        assert fleet.found() == fleet.expected()

    run(scenario)


FAULTS = [
    ("commit", "before"), ("commit", "after"), ("commit", "stolen"), ("activate", "before"), ("activate", "after"),
    ("summary", "before"), ("latest_activation", "before"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "fault"), FAULTS)
def test_a_store_that_fails_now_and_then(method: str, fault: str) -> None:
    """Whatever was being asked of it, it is asked again."""

    async def scenario() -> None:
        fleet = Fleet(a_month())
        worker = fleet.worker()
        await worker.assign(0, 1)
        fleet.store.fail(method, *([None, None, fault] * 4))
        await worker.catch_up()
        assert fleet.found() == fleet.expected()

    run(scenario)
