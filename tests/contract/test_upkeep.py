"""The contract of Upkeep: what operators have done to a namespace, in memory and in Redis; and what only Redis can."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from models.counts import Count
from models.instants import NEVER
from models.population import Summary
from streams.commit import Range, Silence
from streams.errors import FleetMismatch, StaleOwner
from streams.ports import Upkeep
from streams.store.memory import MemoryStore
from streams.store.upkeep import RedisUpkeep
from tests.contract.store_contract import START, a_summary, entry_of, put
from tests.support.real_redis import RealRedis


@pytest.fixture
def redis_upkeep(redis_server: RealRedis, raw: redis.Redis) -> Iterator[RedisUpkeep]:
    """An empty namespace."""
    with closing(RedisUpkeep(redis_server.url, "segmenter")) as store:
        yield store


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Upkeep:
    """An empty store of each kind."""
    return MemoryStore() if request.param == "memory" else request.getfixturevalue("redis_upkeep")


def _written(store: Upkeep) -> None:
    store.acquire(0, "t", START, {"purchases": 40})
    put(
        store, "t", {"purchases": Range(10, 15)}, rows=[("ann", b"1234x")], values={"country:0": "DE"},
        segments={"lifecycle:new": Count(1, 1)}, summary=(10, a_summary(1).json), time=70, settled=70, activation=3,
        entry=entry_of(1),
    )  # fmt: skip


def test_a_rewound_shard(store: Upkeep) -> None:
    """Is empty and nobody's; it knows what it has told, and what it has yet to publish."""
    _written(store)
    before = store.header(0)
    assert store.rewind(0, "r1", 3)
    after = store.header(0)
    assert dict(after.offsets) == dict.fromkeys(START, 0)
    assert after.silence == Silence({**START, "purchases": 15}, 70, 3, 10, "r1")
    assert (after.commits, after.entries, after.backfill_until) == (
        before.commits, before.entries, before.backfill_until
    )  # fmt: skip
    assert (after.owner, after.time, after.settled, after.activation, after.since, after.summarised) == (
        None, None, None, 0, NEVER, None
    )  # fmt: skip
    assert (after.layouts, after.values, list(store.rows(0)), store.segments(0), store.summarised(0)) in (
        ({}, {}, [[]], {}, []), ({}, {}, [], {}, [])
    )  # fmt: skip
    assert store.owner(0) is None
    with pytest.raises(StaleOwner):
        put(store, "t", {"purchases": Range(0, 1)})


def test_a_shard_is_rewound_once_for_each_rebuild(store: Upkeep) -> None:
    """What was told stays what was told, wherever a rebuild is begun again."""
    _written(store)
    assert store.rewind(0, "r1", 3)
    store.acquire(0, "t", {}, {})
    put(store, "t", {"purchases": Range(0, 4)}, time=20, settled=10, activation=1)
    assert store.rewind(0, "r1", 3)
    assert store.header(0).offsets["purchases"] == 4
    assert store.rewind(0, "r2", 3), "under way, it need not have told what is due"
    assert store.header(0).silence == Silence({**START, "purchases": 15}, 70, 3, 10, "r2")


@pytest.mark.parametrize(("settled", "policy"), [(60, 3), (70, 4)], ids=["deadlines", "policy"])
def test_what_is_due_is_told_first(store: Upkeep, settled: int, policy: int) -> None:
    """A shard that has yet to tell something stays as it is."""
    store.acquire(0, "t", START, {})
    put(store, "t", {"purchases": Range(10, 15)}, time=70, settled=settled, activation=3)
    before = store.header(0)
    assert not store.rewind(0, "r1", policy)
    assert store.header(0) == before


def test_a_shard_that_nobody_had(store: Upkeep) -> None:
    """There is nothing to forget."""
    assert store.rewind(5, "r1", 1)
    assert store.header(5).silence == Silence(rebuild="r1")


def test_one_rebuild_at_a_time(store: Upkeep) -> None:
    """The first stays until it has ended, or another is to begin anyway."""
    assert store.rebuilding() is None
    assert [store.begin_rebuild("a"), store.begin_rebuild("b"), store.rebuilding()] == ["a", "a", "a"]
    assert store.begin_rebuild("b", again=True) == "b"
    store.end_rebuild("a")
    assert store.rebuilding() == "b"
    store.end_rebuild("b")
    assert store.rebuilding() is None


def test_no_worker_starts_during_a_repartition(redis_upkeep: RedisUpkeep) -> None:
    """It is told how to finish it; what was begun is found again; in the end there is another number of shards."""
    store = redis_upkeep
    store.register(4, "g")
    assert store.begin_repartition(8) == (None, False)
    store.drained()
    assert store.begin_repartition(12) == (8, True)
    with pytest.raises(FleetMismatch, match="segmenter repartition --partitions 8"):
        store.register(4, "g")
    assert store.lineage() == []
    store.end_repartition(8, [{"partitions": 4}])
    store.register(8, "g")
    assert (store.partitions(), store.lineage()) == (8, [{"partitions": 4}])


def test_what_ended_does_not_end_again(redis_upkeep: RedisUpkeep) -> None:
    """A command that was forgotten changes nothing once another has finished, nor what comes after."""
    store = redis_upkeep
    store.register(4, "g", "kafka")
    store.begin_repartition(8)
    assert store.repartitioning() == 8
    store.end_repartition(8, [{"partitions": 4}])
    store.drained()
    store.end_repartition(8, [{"partitions": 4}, {"partitions": 4}])
    assert (store.repartitioning(), len(store.lineage())) == (None, 1)
    assert store.begin_repartition(16) == (None, False)


def test_a_namespace_is_its_fleets_own(redis_upkeep: RedisUpkeep) -> None:
    """Whatever an operator does with another group's settings, or to another Kafka, is refused."""
    redis_upkeep.register(4, "g", "kafka")
    redis_upkeep.require_own("kafka", "g")
    redis_upkeep.require_own("kafka")
    redis_upkeep.require_own("", "g")
    with pytest.raises(FleetMismatch, match="consumer group 'g', not 'other'"):
        redis_upkeep.require_own("kafka", "other")
    with pytest.raises(FleetMismatch, match="from the Kafka cluster kafka"):
        redis_upkeep.require_own("another")


def test_a_shard_is_spread(store: Upkeep) -> None:
    """New shards know its dictionary and time, begin to read at 0, and had nobody when it summarised itself.

    What it has told before a rebuild they know, too.
    """
    _written(store)
    assert store.rewind(0, "r1", 3)
    store.acquire(0, "t", {}, {})
    put(
        store, "t", {"purchases": Range(0, 15)}, rows=[("ann", b"1234x")], values={"country:0": "DE"},
        segments={"lifecycle:new": Count(1, 1)}, summary=(10, a_summary(1).json), time=60, settled=60, activation=3,
    )  # fmt: skip
    for shard in (0, 4, 8):
        store.claim(shard, "m")
    for _ in range(2):
        store.spread(0, [4, 8], "4", "m")
    source = store.header(0)
    for shard in (4, 8):
        header = store.header(shard)
        assert (header.time, header.activation, header.summarised, header.commits) == (60, 3, 10, source.commits)
        assert (header.layouts, header.values) == (source.layouts, source.values)
        assert dict(header.offsets) == dict.fromkeys(START, 0)
        assert (header.lineage, header.owner, header.entries) == ("4", "m", [])
        assert header.silence == Silence({}, 70, 3, 10, "r1")
        summary = store.summary(shard, 10)
        assert summary is not None
        assert summary.json == Summary.empty().json
    assert (source.lineage, source.owner, source.offsets["purchases"]) == ("4", "m", 15)
    assert store.segments(0) == {}
    store.put_rows(4, [("ann", b"1234x")], "m")
    store.remove_rows(0, ["ann", "bob"], "m")
    assert (store.row(4, "ann"), store.row(0, "ann")) == (b"1234x", None)


def test_only_one_moves_customers(store: Upkeep) -> None:
    """Whoever has claimed the shards last, until a worker takes them."""
    _written(store)
    for shard in (0, 1):
        store.claim(shard, "m")
    with pytest.raises(StaleOwner):
        put(store, "t", {"purchases": Range(15, 16)})
    store.acquire(1, "worker", {}, {})
    for write in (
        lambda: store.spread(0, [1], "1", "m"),
        lambda: store.put_rows(1, [("ann", b"1234x")], "m"),
        lambda: store.remove_rows(0, ["ann"], "other"),
    ):
        with pytest.raises(StaleOwner):
            write()
    assert (store.row(1, "ann"), store.row(0, "ann"), store.header(0).lineage) == (None, b"1234x", "")
