"""RedisStore fulfils the contract of StateStore on a real Redis Cluster of three masters, while slots move, too."""

import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import quote

import pytest

from models.errors import SegmenterError
from streams.commit import Range
from streams.errors import ServiceUnavailable, StoreUnavailable
from streams.ports import StateStore
from streams.store.keys import shard_keys
from streams.store.redis import RedisStore
from tests.contract.store_contract import (
    START,
    StoreContract,
    activation_of,
    commit_of,
    entry_of,
    held,
    put,
    rows_of,
    started,
)
from tests.support.real_redis import RealRedisCluster, RedisUnavailable
from tests.support.rights import redis_user

PASSWORD = "p@ss/w:rd geheim"


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealRedisCluster]:
    """Three masters."""
    with ExitStack() as running:
        try:
            yield running.enter_context(RealRedisCluster())
        except RedisUnavailable as unavailable:
            pytest.skip(str(unavailable))


@pytest.fixture
def cluster(shared_cluster: RealRedisCluster) -> RealRedisCluster:
    """The same, empty."""
    for member in shared_cluster.members:
        member.ask("FLUSHALL")
        member.ask("SCRIPT", "FLUSH")
    return shared_cluster


def slot_of(cluster: RealRedisCluster, shard: int) -> int:
    return cluster.slot_of(shard_keys("segmenter", shard).shard)


def told(store: RedisStore, kind: type[SegmenterError]) -> str:
    """The sentence with which the store refuses to show a shard, which must be of this very kind."""
    with pytest.raises(SegmenterError) as caught:
        store.header(0)
    assert type(caught.value) is kind
    printed = "".join([repr(store), *traceback.format_exception(caught.value)])
    assert "geheim" not in printed
    assert quote(PASSWORD, safe="") not in printed
    return str(caught.value)


class TestRedisCluster(StoreContract):
    """The contract, and what only a cluster can get wrong."""

    @pytest.fixture
    def store(self, cluster: RealRedisCluster) -> Iterator[StateStore]:
        """An empty namespace."""
        with closing(RedisStore(cluster.url, "segmenter")) as store:
            yield store

    def test_shards_lie_on_all_masters(self, cluster: RealRedisCluster, store: StateStore) -> None:
        """Each master has its share of the shards, and a shard is on one of them."""
        for shard in range(16):
            store.acquire(shard, "t", START, {})
            store.commit(commit_of("t", 1, {"purchases": Range(10, 11)}, shard=shard, rows=[(f"c{shard}", b"row")]))
        owners = {shard: cluster.owner_of(slot_of(cluster, shard)).port for shard in range(16)}
        assert set(owners.values()) == {member.port for member in cluster.members}
        for member in cluster.members:
            mine = {f"{{segmenter:{shard}}}".encode() for shard, port in owners.items() if port == member.port}
            assert {key.partition(b":customers")[0].partition(b":shard")[0] for key in member.ask("KEYS", "*")} == mine
        assert [rows_of(store, shard) for shard in range(16)] == [{f"c{shard}": b"row"} for shard in range(16)]

    def test_a_slot_may_move_under_commits(self, cluster: RealRedisCluster, store: StateStore) -> None:
        """While a shard moves to another master key by key, commits go on, and each is stored once."""
        store.acquire(0, "t", {"purchases": 0}, {})
        slot = slot_of(cluster, 0)
        source = cluster.owner_of(slot)
        target = next(member for member in cluster.members if member is not source)
        put(store, "t", {"purchases": Range(0, 1)}, rows=[("c0", b"0")], values={"country:0": "DE"}, entry=entry_of(1))
        moving = threading.Thread(target=cluster.migrate, args=(slot, target, 0.2))
        moving.start()
        at, refused, after = 1, 0, 0
        try:
            while after < 5:
                after += not moving.is_alive()
                try:
                    store.commit(
                        commit_of("t", at + 1, {"purchases": Range(at, at + 1)}, rows=[(f"c{at}", b"%d" % at)])
                    )
                    at += 1
                except StoreUnavailable:
                    refused += 1
                assert refused < 100
            assert cluster.owner_of(slot) is target
            assert store.header(0).offsets == {"purchases": at}
            assert store.header(0).commits == at
            assert rows_of(store) == {f"c{i}": b"%d" % i for i in range(at)}
        finally:
            moving.join()
            cluster.migrate(slot, source)

    def test_rows_are_whole_or_refused_while_their_slot_moves(
        self, cluster: RealRedisCluster, store: StateStore
    ) -> None:
        """Another master cannot go on where one has begun to show the rows: then all are there, or an error."""
        store.acquire(0, "t", START, {})
        rows = [(f"customer-{i}", b"%d" % i) for i in range(25_000)]
        put(store, "t", {}, rows=rows)
        slot = slot_of(cluster, 0)
        source = cluster.owner_of(slot)
        try:
            for target in [member for member in cluster.members if member is not source]:
                parts = store.rows(0)
                seen = dict(next(parts))
                cluster.migrate(slot, target)
                try:
                    for part in parts:
                        seen.update(part)
                except StoreUnavailable:
                    pass
                else:
                    assert len(seen) == len(rows)
                assert rows_of(store) == dict(rows)
        finally:
            if cluster.owner_of(slot) is not source:
                cluster.migrate(slot, source)

    def test_a_master_that_has_never_seen_a_script_is_sent_it(
        self, cluster: RealRedisCluster, store: StateStore
    ) -> None:
        """Each master keeps the scripts it was sent; a shard's new one has none."""
        before = started(store)
        for member in cluster.members:
            member.ask("SCRIPT", "FLUSH")
        assert held(store) == before
        put(store, "t", {"purchases": Range(20, 30)})

    def test_a_wrong_password_is_a_reason_to_stop(self, cluster: RealRedisCluster) -> None:
        """At the first contact and later, when the password has been changed."""
        for member in cluster.members:
            member.ask("ACL", "SETUSER", "worker", "reset", "on", f">{PASSWORD}", "~*", "+@all")
        address = cluster.members[0].address
        with closing(RedisStore(f"redis://worker:geheim@{address}", "segmenter")) as store:
            assert "SEGMENTER_REDIS" in told(store, ServiceUnavailable)
        with closing(RedisStore(f"redis://worker:{quote(PASSWORD, safe='')}@{address}", "segmenter")) as store:
            store.acquire(0, "t", START, {})
            for member in cluster.members:
                member.ask("ACL", "SETUSER", "worker", "resetpass", ">other")
                member.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert "SEGMENTER_REDIS" in told(store, ServiceUnavailable)

    def test_the_documented_rights_are_enough(self, cluster: RealRedisCluster) -> None:
        """A user with the rights of docs/SECURITY.md can do everything, on every master, also when a slot moves."""
        for member in cluster.members:
            member.ask(
                "ACL", "SETUSER", *redis_user("pw", cluster=True).replace("worker on", "worker reset on").split()
            )
            member.ask("ACL", "LOG", "RESET")
        with closing(RedisStore(f"redis://worker:pw@{cluster.members[0].address}/0", "segmenter")) as store:
            store.register(4, "segmenter")
            store.activate(activation_of(1, 1), "text")
            store.commit_learners(None, 1, {}, {})
            before = started(store)
            slot = slot_of(cluster, 0)
            source = cluster.owner_of(slot)
            target = next(member for member in cluster.members if member is not source)
            cluster.migrate(slot, target)
            try:
                assert held(store) == before
                put(store, "t", {"purchases": Range(20, 30)})
            finally:
                cluster.migrate(slot, source)
        assert [member.ask("ACL", "LOG") for member in cluster.members] == [[], [], []]

    def test_a_permission_that_is_missing_is_named(self, cluster: RealRedisCluster) -> None:
        """A user who may not ask for the slots is told so."""
        for member in cluster.members:
            member.ask("ACL", "SETUSER", "worker", "reset", "on", ">pw", "~*", "+@all", "-cluster")
        with closing(RedisStore(f"redis://worker:pw@{cluster.members[0].address}", "segmenter")) as store:
            assert "cluster" in told(store, ServiceUnavailable)

    def test_a_numbered_database_is_refused(self, cluster: RealRedisCluster) -> None:
        """A cluster has none."""
        with closing(RedisStore(f"{cluster.url}/5", "segmenter")) as store:
            assert "let SEGMENTER_REDIS end with /0" in told(store, ServiceUnavailable)
        with closing(RedisStore(f"{cluster.url}/0", "segmenter")) as store:
            assert store.header(0).commits == 0


def test_a_cluster_of_which_nobody_answers() -> None:
    """It is a sentence with the address."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        with closing(RedisStore(f"redis://{address}", "segmenter")) as store:
            assert address in told(store, StoreUnavailable)


def test_masters_that_die_and_come_back() -> None:
    """Shards of the others go on; those of the dead one are refused with a sentence, and go on when it is back."""
    with ExitStack() as running:
        try:
            cluster = running.enter_context(RealRedisCluster())
        except RedisUnavailable as unavailable:
            pytest.skip(str(unavailable))
        store = running.enter_context(closing(RedisStore(cluster.url, "segmenter")))
        for shard in range(9):
            store.acquire(shard, "t", START, {})
        dead = cluster.owner_of(slot_of(cluster, 0))
        dead.kill()
        began = time.monotonic()
        refused = 0
        for shard in range(9):
            commit = commit_of("t", 1, {"purchases": Range(10, 11)}, shard=shard, entry=entry_of(1))
            if cluster_has(cluster, shard):
                store.commit(commit)
            else:
                with pytest.raises(StoreUnavailable):
                    store.commit(commit)
                refused += 1
        assert 0 < refused < 9
        assert time.monotonic() - began < 30
        dead.start()
        deadline = time.monotonic() + 20
        for shard in range(9):
            while store_is_away(store, shard):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            put(store, "t", {}, shard=shard)


def cluster_has(cluster: RealRedisCluster, shard: int) -> bool:
    """Whether a living master has the shard."""
    alive = next(member for member in cluster.members if member.running)
    slot = int(alive.ask("CLUSTER", "KEYSLOT", shard_keys("segmenter", shard).shard))
    ranges = alive.ask("CLUSTER", "SLOTS")
    port = next(int(master[1]) for first, last, master, *_ in ranges if first <= slot <= last)
    return any(member.port == port and member.running for member in cluster.members)


def store_is_away(store: RedisStore, shard: int) -> bool:
    """Whether the shard cannot be read."""
    try:
        store.header(shard)
    except StoreUnavailable:
        return True
    return False
