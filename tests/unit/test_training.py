"""Training: one worker learns from the samples, whoever it is, and whatever fails segmentation goes on."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP
from prometheus_client import REGISTRY

from models.instants import SECOND
from streams.kafka.transport import FetchedRecords, LogRange
from streams.trainer import Trainer
from tests.support.samples import DAY, recorded, values
from tests.unit.build import Rec, at, make_policy, purchase
from tests.unit.fakes import (
    SAMPLES,
    FakeKafka,
    FakePublisher,
    FakeWorker,
    FaultyStore,
    eventually,
    settle,
    threadless,
    without_pauses,
)
from tests.unit.test_trainer import contents, taught

LOG = values(recorded(12))
WANTED = contents(taught(LOG))
CLUSTERS = '\n[dimensions.cluster]\nengine = "cluster"\nclusters = 3\nfeatures = ["recency_days", "orders"]\n'


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)
    threadless(monkeypatch)


class Fleet:
    """Two shards' worth of topics with a log of samples, a store, and the workers that share them."""

    def __init__(self, *draws: bytes | None) -> None:
        self.kafka = FakeKafka(2)
        self.kafka.now = at(60) / SECOND
        self.kafka.draw(*draws)
        self.store, self.publisher = FaultyStore(), FakePublisher()
        self.workers: list[FakeWorker] = []

    def worker(self, **how: Any) -> FakeWorker:
        """A further worker."""
        worker = FakeWorker(self.kafka, self.store, self.publisher, **how)
        self.workers.append(worker)
        return worker

    @property
    def learned(self) -> Any:
        """All that is stored of learners."""
        return contents(self.store.copy())

    def lose(self, below: int) -> None:
        """Kafka deletes the beginning of the samples."""
        self.kafka.first[SAMPLES] = below


def run(scenario: Callable[[Fleet], Coroutine[Any, Any, None]], *draws: bytes | None) -> None:
    """A scenario with a fleet of its own, whose workers are gone at the end."""

    async def whole() -> None:
        fleet = Fleet(*draws)
        try:
            await scenario(fleet)
        finally:
            for worker in fleet.workers:
                await worker.shards.stop(1)
                await worker.kill()

    asyncio.run(whole())


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"segmenter_{name}", labels)


# Who learns, and from where


def test_the_worker_of_the_samples_learns() -> None:
    """The whole log, from the beginning; Kafka's commit follows what is stored."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        assert (await worker.assign(0))[SAMPLES] == 0
        await worker.catch_up()
        assert fleet.learned == WANTED
        assert fleet.kafka.committed[SAMPLES] == len(LOG)

    run(scenario, *LOG)


def test_others_do_not() -> None:
    """A worker without the samples' partition reads none of them."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        assert SAMPLES not in await worker.assign(1)
        await worker.catch_up()
        worker.shards.fetched(FetchedRecords(SAMPLES, 0, 1, [Rec(LOG[0])], 0))
        await settle()
        assert fleet.learned[0] is None

    run(scenario, *LOG)


def test_whoever_takes_over_goes_on_from_the_store() -> None:
    """The samples' partition goes from worker to worker; together they learn as one would."""

    async def scenario(fleet: Fleet) -> None:
        workers = [fleet.worker(fetch=2), fleet.worker(fetch=3)]
        for turn, part in enumerate(range(0, len(LOG), 5)):
            fleet.kafka.draw(*LOG[part : part + 5])
            ours, other = workers[turn % 2], workers[1 - turn % 2]
            await other.assign(1)
            assert (await ours.assign(0))[SAMPLES] == part
            await ours.catch_up()
        assert fleet.learned == WANTED

    run(scenario)


def test_an_assignment_that_changes_nothing_reads_on() -> None:
    """What was fetched already is not read again, and what was lost in the rebalance is."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker(fetch=4)
        await worker.assign(0)
        for _ in range(4):
            worker.turn()
        waiting = (await worker.assign(0, 1))[SAMPLES]
        assert waiting == 16
        await worker.catch_up()
        assert fleet.learned == WANTED

    run(scenario, *LOG)


def test_a_worker_that_lost_the_samples_does_not_commit_any_more() -> None:
    """Two believe that the samples are theirs: each commits what continues the store, and nothing is learned twice."""

    async def scenario(fleet: Fleet) -> None:
        one, other = fleet.worker(fetch=1), fleet.worker(fetch=2)
        await one.assign(0)
        await eventually(lambda: fleet.learned[0] == 4, one.turn)
        await other.assign(0)
        await eventually(lambda: fleet.learned[0] == len(LOG), lambda: (one.turn(), other.turn()))
        assert fleet.learned == WANTED

    run(scenario, *LOG)


def test_partitions_beyond_the_first_stay_empty() -> None:
    """An embedded broker gives the topic more of them: they are positioned, and what lies there is not learned."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        others = {TP(SAMPLES.topic, number): LogRange(0, 7, None) for number in (1, 2)}
        tps = {tp: fleet.kafka.log_range(tp) for tp in fleet.kafka.logs if tp.partition == 1}
        positions = await worker.shards.assigned({**tps, **others})
        assert {tp: positions[tp] for tp in others} == dict.fromkeys(others, 7)
        assert set(worker.shards.owned) == {1}
        await worker.consumer.seek_to(positions)
        for tp in others:
            worker.shards.fetched(FetchedRecords(tp, 7, 8, [Rec(LOG[0], offset=7)], worker.consumer.epoch(tp)))
        worker.shards.watch(joined=True)
        await settle()
        assert fleet.learned[0] is None
        assert not worker.shards.published().keys() & others.keys()

    run(scenario)


# Fetches


@pytest.mark.parametrize("first", [0, 3, 6])
def test_what_was_fetched_before_is_trimmed(first: int) -> None:
    """A fetch that overlaps what is waiting is learned from where that ended."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        for start, end in ((0, 6), (first, 6), (first, len(LOG))):
            records = [Rec(value, offset=at) for at, value in enumerate(LOG[start:end], start)]
            worker.shards.fetched(FetchedRecords(SAMPLES, start, end, records, worker.consumer.epoch(SAMPLES)))
        await eventually(lambda: fleet.learned[0] == len(LOG))
        assert fleet.learned == WANTED

    run(scenario)


def test_what_was_fetched_before_the_last_positioning_is_dropped() -> None:
    """It belongs to an earlier epoch."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        worker.shards.fetched(FetchedRecords(SAMPLES, 0, 1, [Rec(b"an old fetch")], -1))
        await worker.catch_up()
        assert fleet.learned == WANTED

    run(scenario, *LOG)


def test_a_gap_makes_it_read_again() -> None:
    """A fetch that begins too late is not learned: the topic is read from the stored offset."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        late = FetchedRecords(SAMPLES, 5, 6, [Rec(LOG[5], offset=5)], worker.consumer.epoch(SAMPLES))
        worker.shards.fetched(late)
        worker.shards.fetched(late)
        await worker.catch_up()
        assert fleet.learned == WANTED

    run(scenario, *LOG)


def test_few_fetches_wait_at_a_time() -> None:
    """Draws are large: while learning lags the consumer pauses, and then it goes on."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker(fetch=1)
        await worker.assign(0)
        for _ in range(len(LOG)):
            for batch in worker.consumer.fetched():
                worker.shards.fetched(batch)
        assert SAMPLES in worker.consumer.paused
        assert worker.consumer.delivered(SAMPLES) < len(LOG)
        await worker.catch_up()
        assert fleet.learned == WANTED
        assert SAMPLES not in worker.consumer.paused

    run(scenario, *LOG)


# Kafka


@pytest.mark.parametrize("stored", [None, 4])
def test_what_kafka_has_deleted_is_told_and_not_waited_for(
    stored: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on with the first there is, and the store's offset with it; from nothing it just begins there."""

    async def scenario(fleet: Fleet) -> None:
        if stored:
            fleet.store.commit_learners(None, stored, taught(LOG[:stored]).learners()[1], {})
        fleet.lose(10)
        worker = fleet.worker()
        assert (await worker.assign(0))[SAMPLES] == 10
        await worker.catch_up()
        assert fleet.learned[0] == len(LOG)
        assert fleet.learned[2][12] == taught([*LOG[: stored or 0], *LOG[10:]]).learned_model("cluster", 12 * DAY)

    run(scenario, *LOG)
    told = [record for record in caplog.records if "Kafka holds [10, 26)" in record.getMessage()]
    assert len(told) == (stored is not None)


def test_a_topic_that_was_made_again_is_read_from_its_beginning(caplog: pytest.LogCaptureFixture) -> None:
    """The stored offset lies behind its end: that is told, and what was learned before stays."""

    async def scenario(fleet: Fleet) -> None:
        before = taught(LOG[:10])
        fleet.store.commit_learners(None, 1000, before.learners()[1], {})
        fleet.kafka.committed[SAMPLES] = 1000
        worker = fleet.worker()
        assert (await worker.assign(0))[SAMPLES] == 0
        await eventually(lambda: fleet.learned[0] == len(LOG), worker.turn)
        assert fleet.learned[1] == WANTED[1]

    run(scenario, *LOG)
    assert "learning stands at offset 1000, and Kafka holds [0, 26)" in caplog.text


def test_kafka_that_does_not_answer_is_asked_again() -> None:
    """After a failure the topic's range is needed; until it is known nothing is lost."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker()
        await worker.assign(0)
        worker.consumer.errors.extend([KafkaConnectionError("away")] * 3)
        fleet.store.fail("commit_learners", None, "before")
        await worker.catch_up()
        assert fleet.learned == WANTED
        assert not worker.consumer.errors

    run(scenario, *LOG)


# The store


@pytest.mark.parametrize("method", ["learners", "commit_learners"])
@pytest.mark.parametrize("faults", [["before"], ["after"], [None, "before", "before"], [None, None, "after"] * 3])
def test_a_store_that_fails_loses_and_doubles_nothing(method: str, faults: list[str | None]) -> None:
    """Whatever the store does, the same is learned as without; shards do not wait for it."""

    async def scenario(fleet: Fleet) -> None:
        fleet.store.fail(method, *faults)
        worker = fleet.worker(fetch=2)
        await worker.assign(0)
        fleet.kafka.produce([purchase("a", "1", at(0))])
        await worker.catch_up()
        assert fleet.learned == WANTED
        assert fleet.publisher.changes or 0 not in worker.shards.owned

    run(scenario, *LOG)


def test_a_store_that_came_back_older_learns_again() -> None:
    """A backup has learners and offset of one moment: what came after is read once more, and leads to the same."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker(fetch=3)
        await worker.assign(0)
        await eventually(lambda: (fleet.learned[0] or 0) >= 6, worker.turn)
        fleet.store.keep()
        await eventually(lambda: (fleet.learned[0] or 0) >= 18, worker.turn)
        fleet.store.restore()
        await eventually(lambda: fleet.learned[0] == len(LOG), worker.turn)
        assert fleet.learned == WANTED

    run(scenario, *LOG)


@pytest.mark.parametrize("before", [True, False])
def test_a_damaged_learner_stops_learning_and_nothing_else(before: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, with the key and what to do; the rest goes on, and learning too when it has been mended."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker(fetch=2)
        damaged = {"cluster": b'{"format":1}'}
        if before:
            fleet.store.commit_learners(None, 0, damaged, {})
        await worker.assign(0, 1)
        if not before:
            await eventually(lambda: fleet.learned[0] == 6, worker.turn)
            fleet.store.commit_learners(6, 6, damaged, {})
            fleet.store.fail("commit_learners", "before")
        await eventually(lambda: sample("trainer_failed") == 1, worker.turn)
        read, customers = fleet.learned[0], [f"c{number}" for number in range(20)]
        fleet.kafka.produce([purchase(customer, customer, at(0)) for customer in customers])
        await eventually(lambda: len(fleet.publisher.once()) >= 20, worker.turn)
        for _ in range(50):
            worker.turn()
            await settle()
        assert fleet.learned[:2] == (read, damaged)
        assert sample("trainer_failed") == 1
        mended = taught(LOG[:read]).learners()[1] if read else {"cluster": b""}
        if read:
            fleet.store.commit_learners(read, read, mended, {})
        else:
            fleet.store._learners.clear()
        await worker.catch_up()
        assert fleet.learned == WANTED
        assert sample("trainer_failed") == 0

    with caplog.at_level(logging.ERROR):
        run(scenario, *LOG)
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    sentence = told.getMessage()
    assert "field learner:cluster" in sentence
    assert "of the Redis key segmenter:clusters; restore it, or remove it to learn anew (docs/STATE.md)" in sentence
    assert told.exc_info is None


def test_a_newer_learner_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A newer version has written it: an older worker neither reads nor replaces it, and says so."""

    async def scenario(fleet: Fleet) -> None:
        fleet.store.commit_learners(None, 3, {"cluster": b'{"format":2}'}, {})
        worker = fleet.worker()
        await worker.assign(0)
        for _ in range(30):
            worker.turn()
            await settle()
        assert fleet.learned[:2] == (3, {"cluster": b'{"format":2}'})
        assert SAMPLES not in worker.shards.published()

    run(scenario, *LOG)
    assert "run a newer version" in caplog.text


def test_a_bug_in_learning_stops_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once with its traceback, tried again, and what it stumbled over is learned once it can be."""
    learn, broken = Trainer.learn, [True]

    def stumbling(self: Trainer, start: int, *rest: Any) -> Any:
        if broken[0] and start >= 6:
            raise ZeroDivisionError("no samples")
        return learn(self, start, *rest)

    monkeypatch.setattr(Trainer, "learn", stumbling)

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker(fetch=3)
        await worker.assign(0)
        await eventually(lambda: sample("trainer_failed") == 1, worker.turn)
        fleet.kafka.produce([purchase("a", "1", at(0))])
        await eventually(lambda: fleet.publisher.changes, worker.turn)
        for _ in range(20):
            worker.turn()
            await settle()
        assert fleet.learned[0] == 6
        assert sample("trainer_failed") == 1
        broken[0] = False
        await worker.catch_up()
        assert fleet.learned == WANTED
        assert sample("trainer_failed") == 0

    run(scenario, *LOG)
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "this is a bug in segmenter" in told.getMessage()
    assert told.exc_info is not None


def test_what_is_no_draw_is_counted() -> None:
    """Beside those that are."""

    def counted() -> tuple[float, float]:
        outcomes = ("used", "refused")
        found = (sample("events_total", topic=SAMPLES.topic, outcome=outcome) for outcome in outcomes)
        used, refused = (count or 0 for count in found)
        return used, refused

    async def scenario(fleet: Fleet) -> None:
        used, refused = counted()
        worker = fleet.worker()
        await worker.assign(0)
        await worker.catch_up()
        assert counted() == (used + len(LOG), refused + 2)
        assert fleet.learned[1:] == WANTED[1:]

    run(scenario, b"{", *LOG, None)


# Metrics


def test_the_model_is_told_by_who_learns_it(caplog: pytest.LogCaptureFixture) -> None:
    """Of dimensions that the policy has, until the samples go to another worker; versions and drifts are in the log."""
    caplog.set_level("INFO")
    names = (
        "cluster_model_version", "cluster_model_as_of_timestamp_seconds", "cluster_samples",
        "cluster_quantisation_error", "cluster_silhouette",
    )  # fmt: skip

    def shown(dimension: str = "cluster") -> Mapping[str, float | None]:
        return {name: sample(name, dimension=dimension) for name in names}

    async def scenario(fleet: Fleet) -> None:
        drifts = sample("cluster_drifts_total", dimension="cluster") or 0
        worker = fleet.worker(policy=make_policy(more=CLUSTERS))
        await worker.assign(0)
        # What the shard draws itself is not learned: it has an older policy, with other settings.
        await eventually(lambda: fleet.kafka.committed[SAMPLES] >= len(LOG) + len(former), worker.turn)
        worker.turn()
        found = shown()
        assert (found["cluster_model_version"], found["cluster_samples"]) == (12, 12 * 60)
        assert found["cluster_model_as_of_timestamp_seconds"] == 12 * 86_400
        assert 0 < (found["cluster_quantisation_error"] or 0) < 1
        assert 0.3 < (found["cluster_silhouette"] or 0) <= 1
        shares = [sample("cluster_share", dimension="cluster", cluster=f"c{code}") for code in (1, 2, 3, 4)]
        assert sum(share or 0 for share in shares) == pytest.approx(1, abs=1e-5)
        assert shares[3] is None
        assert (sample("cluster_drifts_total", dimension="cluster") or 0) > drifts
        assert "cluster: version 12 as of 1970-01-13T00:00:00Z has learned 720 samples" in caplog.text
        assert "cluster: drift, customers are farther from their clusters" in caplog.text
        assert set(shown("former").values()) == {None}
        assert sample("consumer_lag_records", topic=SAMPLES.topic, partition="0") == 0
        await worker.assign(1)
        worker.turn()
        assert set(shown().values()) == {None}
        assert sample("cluster_share", dimension="cluster", cluster="c1") is None
        assert sample("consumer_lag_records", topic=SAMPLES.topic, partition="0") is None

    former = values(recorded(3, dimension="former"))
    run(scenario, *values(recorded(12, policy_version=2)), *former)


def test_the_lag_is_what_was_not_learned() -> None:
    """What waits in Kafka and what waits here."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker(fetch=4)
        await worker.assign(0)
        for batch in worker.consumer.fetched():
            worker.shards.fetched(batch)
        worker.shards.watch(joined=True)
        assert sample("consumer_lag_records", topic=SAMPLES.topic, partition="0") == len(LOG)

    run(scenario, *LOG)


def test_a_worker_that_stops_finishes_what_it_learns() -> None:
    """What is under way is committed; what waits is left to whoever comes next."""

    async def scenario(fleet: Fleet) -> None:
        worker = fleet.worker(fetch=2)
        await worker.assign(0)
        for _ in range(3):
            for batch in worker.consumer.fetched():
                worker.shards.fetched(batch)
        await settle(2)
        await worker.shards.stop(5)
        done = fleet.learned[0]
        assert done in (2, 4)
        assert SAMPLES not in worker.shards.published()
        second = fleet.worker()
        assert (await second.assign(0))[SAMPLES] == done
        await second.catch_up()
        assert fleet.learned == WANTED

    run(scenario, *LOG)
