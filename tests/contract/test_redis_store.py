"""RedisStore fulfils the contract of StateStore on a real Redis, and keeps to the keys of docs/STATE.md."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis
from redis.crc import key_slot

from models.counts import Count
from models.errors import StateError
from models.instants import NEVER
from streams.commit import OutboxEntry, Range
from streams.errors import LostBatch, StaleOwner
from streams.ports import StateStore
from streams.store.redis import RedisStore
from tests.contract.store_contract import (
    NOTHING,
    START,
    StoreContract,
    a_summary,
    activation_of,
    commit_of,
    entry_of,
    full_commit,
    held,
    put,
    rows_of,
    started,
)
from tests.support.real_redis import RealRedis

PARTS = ("shard", "customers", "outbox", "segments", "values", "population")
SHARD_KEYS = {f"{{segmenter:0}}:{part}".encode() for part in PARTS}


class TestRedisStore(StoreContract):
    """The contract, on RedisStore, and what only Redis can get wrong."""

    @pytest.fixture
    def store(self, redis_server: RealRedis, raw: redis.Redis) -> Iterator[StateStore]:
        """An empty namespace."""
        with closing(RedisStore(redis_server.url, "segmenter")) as store:
            yield store

    @pytest.fixture
    def twin(self, redis_server: RealRedis, store: StateStore) -> Iterator[RedisStore]:
        """Another worker's store on the same namespace."""
        with closing(RedisStore(redis_server.url, "segmenter")) as twin:
            yield twin

    def test_a_full_shard_has_exactly_the_documented_keys(self, store: StateStore, raw: redis.Redis) -> None:
        """A shard is six hashes, the fleet, the policies and the learners one more each, and none of them expires."""
        started(store)
        put(store, "t", {}, summary=(10, a_summary(1).json), segments={"lifecycle:new": Count(1, 1)})
        store.register(4, "segmenter")
        store.activate(activation_of(1, 1), "text", a_summary(1))
        store.commit_learners(None, 1, {}, {})
        keys = set(raw.keys())
        assert keys == SHARD_KEYS | {b"segmenter:fleet", b"segmenter:policy", b"segmenter:clusters"}
        assert {raw.type(key) for key in keys} == {b"hash"}
        assert {raw.ttl(key) for key in keys} == {-1}

    def test_the_shard_hash_has_exactly_the_documented_fields(self, store: StateStore, raw: redis.Redis) -> None:
        """The shard's own hash holds owner, commits, positions, time, activation, policy version and layouts."""
        header = started(store).header
        (layout_id,) = header.layouts
        assert raw.hgetall("{segmenter:0}:shard") == {
            b"owner": b"t",
            b"commits": b"1",
            b"offset:signups": b"5",
            b"offset:purchases": b"20",
            b"offset:erasures": b"0",
            b"backfill:purchases": b"40",
            b"time": b"1704447000000000",
            b"settled": b"1704447000000000",
            b"activation": b"1",
            b"since": b"-4611686018427387904",
            b"policy_version": b"1",
            f"layout:{layout_id}".encode(): header.layouts[layout_id].json,
        }

    def test_the_policy_hash_has_exactly_the_documented_fields(self, store: StateStore, raw: redis.Redis) -> None:
        """It holds the activations, the policies' texts, and the population with its instant."""
        store.activate(activation_of(1, 3, instant=7), "größe", a_summary(1))
        assert raw.hgetall("segmenter:policy") == {
            b"latest": b"1",
            b"activation:1": activation_of(1, 3, instant=7).json,
            b"policy:3": "größe".encode(),
            b"population_as_of": b"7",
            b"population": a_summary(1).json,
        }

    def test_the_learners_hash_has_exactly_the_documented_fields(self, store: StateStore, raw: redis.Redis) -> None:
        """It holds what has been read, each dimension's learner, and what it published as of each instant."""
        store.commit_learners(None, 7, {"größe": b"{}"}, {("größe", -5): b"null"})
        assert raw.hgetall("segmenter:clusters") == {
            b"offset": b"7",
            "learner:größe".encode(): b"{}",
            "model:größe:-5".encode(): b"null",
        }

    def test_a_shard_of_the_version_before_can_be_read(self, store: StateStore, raw: redis.Redis) -> None:
        """Without the fields that it did not know there is no activation, and its time is all that it says."""
        started(store)
        raw.hdel("{segmenter:0}:shard", "settled", "activation", "since")
        raw.hset("{segmenter:0}:segments", "lifecycle:new", '{"customers":2,"revenue_minor":-5}')
        raw.hset("{segmenter:0}:outbox", "1-t", '{"format":1,"changes":[],"dead_letters":[]}')
        header = store.header(0)
        assert (header.settled, header.activation, header.since, header.summarised) == (None, 0, NEVER, None)
        assert header.time == 1_704_447_000_000_000
        assert store.segments(0)["lifecycle:new"] == Count(2, -5, 0)
        assert list(header.entries) == [OutboxEntry("1-t", [], [])]
        put(store, "t", {}, activation=1)
        assert store.header(0).activation == 1

    @pytest.mark.parametrize("stored", ["", "{", "[]", "{}", '{"distributions":{},"segments":{}}'])
    def test_a_damaged_summary_is_told(self, store: StateStore, raw: redis.Redis, stored: str) -> None:
        """A summary or population that cannot be read raises StateError."""
        raw.hset("{segmenter:0}:population", "7", stored)
        with pytest.raises(StateError, match=r"damaged.*restore"):
            store.summary(0, 7)
        raw.hset("segmenter:policy", mapping={"population_as_of": "7", "population": stored})
        with pytest.raises(StateError, match=r"damaged.*restore"):
            store.population()

    @pytest.mark.parametrize(
        ("stored", "told"),
        [
            ("{", "activation 1 is damaged"),
            ("[]", "activation 1 is damaged"),
            ('{"format":1}', "activation 1 is damaged"),
            ('{"format":3}', "activation 1 was stored in format 3; run a newer version"),
        ],
    )
    def test_a_damaged_activation_is_told(self, store: StateStore, raw: redis.Redis, stored: str, told: str) -> None:
        """An activation that cannot be read, or that a newer version wrote, raises StateError."""
        raw.hset("segmenter:policy", mapping={"latest": "1", "activation:1": stored})
        with pytest.raises(StateError, match=told):
            store.activation(1)

    def test_the_keys_of_a_shard_lie_in_one_cluster_slot(self, store: StateStore, raw: redis.Redis) -> None:
        """Redis Cluster keeps a shard on one node, and may put shards on different ones."""
        started(store)
        put(store, "t", {}, summary=(10, a_summary(1).json), segments={"lifecycle:new": Count(1, 1)})
        keys = raw.keys("*")
        assert len({key_slot(key) for key in keys if isinstance(key, bytes)}) == 1
        assert len(keys) == 6
        assert len({key_slot(f"{{segmenter:{shard}}}:shard".encode()) for shard in range(16)}) == 16

    def test_looking_creates_no_keys(self, store: StateStore, raw: redis.Redis) -> None:
        """Reading, a refused commit and acknowledging leave no trace."""
        held(store)
        store.partitions()
        store.acknowledge(0, ["1-t"])
        with pytest.raises(StaleOwner):
            store.commit(full_commit("t", {}))
        assert raw.keys() == []

    def test_namespaces_do_not_see_each_other(self, store: StateStore, redis_server: RealRedis) -> None:
        """Two fleets may share one Redis under different namespaces, even if one name begins like the other."""
        first = started(store)
        store.register(4, "segmenter")
        for namespace in ("segmenter:0", "segmente", "größe", "{segmenter}", ""):
            with closing(RedisStore(redis_server.url, namespace)) as other:
                assert held(other) == NOTHING
                assert other.partitions() is None
                other.register(8, "other")
                started(other)
                other.commit(full_commit("t", {}))
        assert held(store) == first
        assert store.partitions() == 4

    def test_databases_do_not_see_each_other(self, store: StateStore, redis_server: RealRedis) -> None:
        """The database number of the address counts."""
        started(store)
        with closing(RedisStore(redis_server.url.removesuffix("/0") + "/5", "segmenter")) as other:
            assert held(other) == NOTHING

    def test_a_forgotten_script_is_sent_again(self, store: StateStore, raw: redis.Redis) -> None:
        """Commits go on after Redis has dropped its scripts, as it does when it restarts."""
        started(store)
        raw.script_flush()
        put(store, "t", {"purchases": Range(20, 21)})
        assert store.header(0).offsets["purchases"] == 21

    def test_an_emptied_redis_refuses_the_owner_of_before(self, store: StateStore, raw: redis.Redis) -> None:
        """When everything was lost nobody goes on as if nothing had happened."""
        started(store)
        raw.flushall()
        with pytest.raises(StaleOwner):
            store.commit(full_commit("t", {"purchases": Range(20, 30)}))
        assert raw.keys() == []

    def test_a_redis_that_came_back_older_refuses_the_next_batch(self, store: StateStore, raw: redis.Redis) -> None:
        """After a restored backup the stored offset is behind, and the batch of the worker that went on is refused."""
        started(store)
        raw.hset("{segmenter:0}:shard", "offset:purchases", "15")
        before = held(store)
        with pytest.raises(LostBatch, match=r"starts at 20.* at 15"):
            store.commit(full_commit("t", {"purchases": Range(20, 30)}))
        assert held(store) == before

    def test_a_missing_offset_is_told(self, store: StateStore, raw: redis.Redis) -> None:
        """Where no offset is stored at all the message says so."""
        store.acquire(0, "t", {}, {})
        with pytest.raises(LostBatch, match=r"starts at 20.* at nothing"):
            store.commit(full_commit("t", {"purchases": Range(20, 30)}, 1))

    def test_unknown_fields_are_ignored(self, store: StateStore, raw: redis.Redis) -> None:
        """A later version of this format may keep more in a shard's hash; this one does not mind."""
        before = started(store)
        raw.hset("{segmenter:0}:shard", mapping={"model": b"\xff\xfe", "future:thing": "1"})
        assert held(store) == before

    def test_many_rows_are_each_read_once(self, store: StateStore) -> None:
        """Rows of a large shard come in several parts, none missing and none twice."""
        store.acquire(0, "t", START, {})
        rows = {f"customer-{i}": b"%d" % i for i in range(60_000)}
        put(store, "t", {}, rows=list(rows.items()))
        parts = list(store.rows(0))
        assert len(parts) > 1
        assert sum(map(len, parts)) == len(rows)
        assert rows_of(store) == rows

    def test_two_stores_are_one_shard(self, store: StateStore, twin: RedisStore) -> None:
        """What one worker commits the other reads, and the later acquire wins."""
        assert held(twin) == NOTHING
        before = started(store)
        assert held(twin) == before
        twin.acquire(0, "u", {}, {})
        with pytest.raises(StaleOwner):
            store.commit(full_commit("t", {}))
        put(twin, "u", {"purchases": Range(20, 30)})
        assert store.header(0).offsets["purchases"] == 30

    def test_workers_that_fight_for_a_shard_lose_and_double_nothing(
        self, store: StateStore, redis_server: RealRedis
    ) -> None:
        """Four workers take the shard from each other all the time: each record is committed exactly once."""
        per_worker, committed, failures = 40, [], []

        def work(name: str) -> None:
            mine = RedisStore(redis_server.url, "segmenter")
            try:
                for turn in range(per_worker):
                    while True:
                        token = f"{name}.{turn}"
                        header = mine.acquire(0, token, {"purchases": 0}, {})
                        at = header.offsets["purchases"]
                        commit = commit_of(
                            token,
                            header.commits + 1,
                            {"purchases": Range(at, at + 1)},
                            rows=[(f"c{at}", token.encode())],
                            entry=entry_of(at + 1, token),
                        )
                        try:
                            mine.commit(commit)
                        except StaleOwner:
                            continue
                        committed.append((f"c{at}", token.encode()))
                        break
            except BaseException as error:
                failures.append(error)
            finally:
                mine.close()

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        now = held(store)
        assert now.header.offsets == {"purchases": 4 * per_worker}
        assert now.header.commits == 4 * per_worker
        assert sorted(now.rows.items()) == sorted(committed)
        assert [entry.number for entry in now.header.entries] == list(range(1, 4 * per_worker + 1))


def test_a_committed_shard_survives_a_crash(start_redis: Callable[..., RealRedis]) -> None:
    """With every write synced, what was committed before a SIGKILL of Redis is there after it, and nothing else."""
    server = start_redis(config={"appendfsync": "always"})
    with closing(RedisStore(server.url, "segmenter")) as store:
        before = started(store)
        server.kill()
        server.start()
        assert held(store) == before
        store.commit(full_commit("t", {"purchases": Range(20, 30)}))
        assert store.header(0).offsets["purchases"] == 30
