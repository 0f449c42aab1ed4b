"""What RedisStore says and leaves behind when Redis is away, full, read-only, slow, damaged or refuses something."""

import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

import pytest
import redis

from models.errors import SegmenterError, StateError
from streams.commit import Range
from streams.errors import LostBatch, ServiceUnavailable, StaleOwner, StoreUnavailable
from streams.store.redis import RedisStore
from tests.contract.store_contract import (
    LAYOUT,
    START,
    a_summary,
    activation_of,
    commit_of,
    entry_of,
    full_commit,
    held,
    put,
    started,
)
from tests.support.real_redis import RealRedis

StartRedis = Callable[..., RealRedis]
LOOPBACK = "127.0.0.1"

#: Passwords with everything that has a meaning in an address.
PASSWORD = "p@ss/w:rd #1?%41'\\ geheim"
WRONG_PASSWORD = "wr@ng/%41 verraten"

NEXT = full_commit("t", {"purchases": Range(20, 30)})
WRITES: dict[str, Callable[[RedisStore], object]] = {
    "register": lambda store: store.register(4, "segmenter"),
    "acquire": lambda store: store.acquire(0, "t", START, {}),
    "commit": lambda store: store.commit(NEXT),
    "activate": lambda store: store.activate(activation_of(1, 1), "text", a_summary(1)),
    "commit_learners": lambda store: store.commit_learners(None, 1, {"cluster": b"{}"}, {("cluster", 0): b"null"}),
}
EVERYTHING: dict[str, Callable[[RedisStore], object]] = WRITES | {
    "acknowledge": lambda store: store.acknowledge(0, ["1-t"]),
    "ping": lambda store: store.ping(),
    "partitions": lambda store: store.partitions(),
    "header": lambda store: store.header(0),
    "rows": lambda store: list(store.rows(0)),
    "row": lambda store: store.row(0, "c"),
    "rows_of": lambda store: store.rows_of(0, ["c"]),
    "segments": lambda store: store.segments(0),
    "latest_activation": lambda store: store.latest_activation(),
    "activation": lambda store: store.activation(1),
    "policy_text": lambda store: store.policy_text(1),
    "population": lambda store: store.population(),
    "summarised": lambda store: store.summarised(0),
    "summary": lambda store: store.summary(0, 1),
    "learners": lambda store: store.learners(),
    "learned_model": lambda store: store.learned_model("cluster", 0),
}


def refused(store: RedisStore, kind: type[SegmenterError], operate: Callable[[RedisStore], object]) -> str:
    """The message of the error that ``operate`` raises, which must be of this very kind and name the address."""
    with pytest.raises(SegmenterError) as caught:
        operate(store)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert store.address in message
    printed = "".join([repr(store), repr(caught.value), *traceback.format_exception(caught.value)])
    for secret in (PASSWORD, WRONG_PASSWORD, "geheim", "verraten", quote(PASSWORD, safe="")):
        assert secret not in message
        assert secret not in printed
    return message


def url_with(server: RealRedis, password: str, user: str = "") -> str:
    """The server's address with this login."""
    return f"redis://{user}:{quote(password, safe='')}@{server.address}/0"


def contents(raw: redis.Redis) -> dict[bytes, Any]:
    """Everything in the database, of whatever type."""
    keys: list[Any] = sorted(raw.keys())
    return {key: raw.hgetall(key) if raw.type(key) == b"hash" else raw.get(key) for key in keys}


class TestAway:
    """Nobody answers."""

    @pytest.mark.parametrize("name", EVERYTHING)
    def test_everything_says_that_redis_is_down(self, name: str, redis_server: RealRedis) -> None:
        """With nobody on the port every method raises StoreUnavailable, soon, with the address and no password."""
        with socket.socket() as reserved:
            reserved.bind((LOOPBACK, 0))
            address = f"{LOOPBACK}:{reserved.getsockname()[1]}"
            with closing(RedisStore(f"redis://:{quote(PASSWORD, safe='')}@{address}/0", "segmenter")) as store:
                began = time.monotonic()
                assert address in refused(store, StoreUnavailable, EVERYTHING[name])
                assert time.monotonic() - began < 3

    def test_the_store_goes_on_when_redis_is_back(self, start_redis: StartRedis) -> None:
        """After a crash and a restart of Redis the same store works, on what was stored."""
        server = start_redis(password=PASSWORD, config={"appendfsync": "always"})
        with closing(RedisStore(server.url, "segmenter")) as store:
            before = started(store)
            server.kill()
            for operate in WRITES.values():
                refused(store, StoreUnavailable, operate)
            server.start()
            assert held(store) == before
            store.commit(NEXT)
            assert store.header(0).offsets["purchases"] == 30

    def test_a_redis_that_restarts_in_between_is_not_noticed(self, start_redis: StartRedis) -> None:
        """A connection that broke since its last use is replaced without an error."""
        server = start_redis(config={"appendfsync": "always"})
        with closing(RedisStore(server.url, "segmenter")) as store:
            started(store)
            server.restart()
            store.commit(NEXT)
            assert store.header(0).offsets["purchases"] == 30

    def test_a_redis_that_never_answers_times_out(self) -> None:
        """A server that takes connections and stays silent is given up after the timeout."""
        with socket.create_server((LOOPBACK, 0)) as silent:
            address = f"{LOOPBACK}:{silent.getsockname()[1]}"
            with closing(RedisStore(f"redis://:geheim@{address}/0", "segmenter", timeout=0.1)) as store:
                began = time.monotonic()
                assert address in refused(store, StoreUnavailable, EVERYTHING["commit"])
                assert time.monotonic() - began < 3

    def test_who_is_in_a_hurry_waits_for_a_second(self, start_redis: StartRedis) -> None:
        """A server that hangs does not hold up the event loop for longer; everybody else gives it its time."""
        server = start_redis()
        with closing(RedisStore(server.url, "segmenter")) as store, redis.Redis.from_url(server.url) as client:
            store.ping()
            client.client_pause(2_500)
            with store.hurried(), pytest.raises(StoreUnavailable, match="Timeout"):
                store.ping()
            store.ping()

    def test_rows_may_break_off(self, start_redis: StartRedis) -> None:
        """When Redis goes away between two parts of the rows, going on raises StoreUnavailable."""
        server = start_redis(aof=False)
        with closing(RedisStore(server.url, "segmenter")) as store:
            store.acquire(0, "t", START, {})
            put(store, "t", {}, rows=[(f"c{i}", b"row") for i in range(50_000)])
            parts = store.rows(0)
            assert next(parts)
            server.kill()
            refused(store, StoreUnavailable, lambda _: list(parts))

    def test_a_loading_redis_is_unavailable(self, redis_server: RealRedis, start_redis: StartRedis) -> None:
        """While Redis still reads its data at a start the store says StoreUnavailable and later finds everything."""
        with redis.Redis.from_url(redis_server.url) as raw:
            debug = {} if raw.info("server")["redis_version"] < "7" else {"enable-debug-command": "yes"}
        server = start_redis(aof=False, config=debug)
        with closing(RedisStore(server.url, "segmenter")) as store, redis.Redis.from_url(server.url) as raw:
            before = started(store)
            raw.config_set("key-load-delay", 300_000)
            with suppress(redis.ResponseError):  # Redis 6 has no such setting: there it does not answer meanwhile
                raw.config_set("loading-process-events-interval-bytes", 1024)
            reload = threading.Thread(target=raw.execute_command, args=("DEBUG", "RELOAD"))
            reload.start()
            try:
                time.sleep(0.3)
                with closing(RedisStore(server.url, "segmenter", timeout=0.2)) as hurried:
                    refused(hurried, StoreUnavailable, EVERYTHING["header"])
            finally:
                reload.join()
            assert held(store) == before


class TestPassword:
    """Redis wants another password than we have."""

    @pytest.fixture
    def server(self, start_redis: StartRedis) -> RealRedis:
        """A Redis with a password."""
        return start_redis(password=PASSWORD)

    def test_a_wrong_password_is_a_reason_to_stop(self, server: RealRedis) -> None:
        """A refused login raises ServiceUnavailable that names the address and the setting."""
        with closing(RedisStore(url_with(server, WRONG_PASSWORD), "segmenter")) as store:
            for name in ("ping", "acquire", "commit", "rows"):
                assert "SEGMENTER_REDIS" in refused(store, ServiceUnavailable, EVERYTHING[name])

    @pytest.mark.parametrize("user", ["default", "nobody"])
    def test_a_wrong_user_is_a_reason_to_stop(self, server: RealRedis, user: str) -> None:
        """A user whom Redis does not know, or who has another password, is refused alike."""
        with closing(RedisStore(url_with(server, WRONG_PASSWORD, user), "segmenter")) as store:
            assert "SEGMENTER_REDIS" in refused(store, ServiceUnavailable, EVERYTHING["acquire"])

    def test_a_missing_password_is_a_reason_to_stop(self, server: RealRedis) -> None:
        """No login where one is needed raises ServiceUnavailable too."""
        with closing(RedisStore(f"redis://{server.address}/0", "segmenter")) as store:
            for operate in (EVERYTHING["ping"], EVERYTHING["register"]):
                assert "SEGMENTER_REDIS" in refused(store, ServiceUnavailable, operate)

    def test_a_password_that_was_changed_is_noticed(self, server: RealRedis) -> None:
        """A worker whose password was withdrawn stops when it has to connect again, and has written nothing."""
        with closing(RedisStore(server.url, "segmenter")) as store, redis.Redis.from_url(server.url) as raw:
            before = started(store)
            raw.config_set("requirepass", "another")
            raw.client_kill_filter(skipme=True, _type="normal")
            refused(store, ServiceUnavailable, EVERYTHING["commit"])
            raw.config_set("requirepass", PASSWORD)
            assert held(store) == before

    def test_the_right_password_is_not_shown(self, server: RealRedis) -> None:
        """Neither the store's repr and address nor a refusal contain the password."""
        with closing(RedisStore(server.url, "segmenter")) as store:
            store.ping()
            assert store.address == server.address
            assert "geheim" not in repr(store)
            started(store)
            for token, kind in (("u", StaleOwner), ("t", LostBatch)):
                with pytest.raises(kind) as caught:
                    store.commit(full_commit(token, {"purchases": Range(1, 2)}))
                assert "geheim" not in "".join(traceback.format_exception(caught.value))


class TestFull:
    """Redis has no memory left, and evicts nothing."""

    @pytest.fixture
    def server(self, start_redis: StartRedis) -> RealRedis:
        """A Redis that refuses writes when it is full."""
        return start_redis(aof=False, password=PASSWORD, config={"maxmemory-policy": "noeviction"})

    @pytest.fixture
    def admin(self, server: RealRedis) -> Iterator[redis.Redis]:
        """A client that sets the server's memory."""
        with redis.Redis.from_url(server.url) as client:
            yield client

    def test_writes_are_refused_whole(self, server: RealRedis, admin: redis.Redis) -> None:
        """A full Redis raises StoreUnavailable for every write, nothing of which is stored."""
        with closing(RedisStore(server.url, "segmenter")) as store:
            before = started(store)
            admin.config_set("maxmemory", "1")
            for operate in WRITES.values():
                assert "memory" in refused(store, StoreUnavailable, operate)
            assert held(store) == before
            assert store.row(0, "kept") == b"kept"
            assert store.partitions() is None
            admin.config_set("maxmemory", "0")
            store.commit(NEXT)
            assert store.header(0).offsets["purchases"] == 30

    def test_everything_can_be_read(self, server: RealRedis, admin: redis.Redis) -> None:
        """A full Redis still shows the whole shard, the header too, even to the first who asks after its restart."""
        with closing(RedisStore(server.url, "segmenter")) as store:
            before = started(store)
            admin.config_set("maxmemory", "1")
            admin.script_flush()
            assert held(store) == before

    def test_an_erasure_is_refused_whole_too(self, server: RealRedis, admin: redis.Redis) -> None:
        """A commit that would only free memory is refused as a whole: its offset cannot be stored either."""
        with closing(RedisStore(server.url, "segmenter")) as store:
            before = started(store)
            admin.config_set("maxmemory", "1")
            with pytest.raises(StoreUnavailable):
                put(store, "t", {"purchases": Range(20, 21)}, erased=["doomed"])
            assert held(store) == before
            admin.config_set("maxmemory", "0")
            assert held(store) == before

    def test_the_guard_still_answers_first(self, server: RealRedis, admin: redis.Redis) -> None:
        """A stale owner or a lost batch is told as such, whether or not there is memory."""
        with closing(RedisStore(server.url, "segmenter")) as store:
            started(store)
            admin.config_set("maxmemory", "1")
            with pytest.raises(StaleOwner):
                store.commit(full_commit("u", {}))
            for lost in (full_commit("t", {"purchases": Range(21, 22)}), full_commit("t", {}, 1)):
                with pytest.raises(LostBatch):
                    store.commit(lost)

    def test_a_full_redis_can_still_be_emptied(self, server: RealRedis, admin: redis.Redis) -> None:
        """Published entries can be acknowledged, which frees memory."""
        with closing(RedisStore(server.url, "segmenter")) as store:
            started(store)
            admin.config_set("maxmemory", "1")
            store.acknowledge(0, ["1-t"])
            admin.config_set("maxmemory", "0")
            assert not store.header(0).entries

    def test_learning_that_fills_redis_is_whole(self, server: RealRedis, admin: redis.Redis) -> None:
        """Where memory runs out while learners are kept, all of it is stored or nothing."""
        with closing(RedisStore(server.url, "segmenter")) as store:
            store.commit_learners(None, 0, {}, {})
            admin.config_set("maxmemory", str(admin.info("memory")["used_memory"] + 2_000_000))
            for at in range(40):
                models = {("cluster", 100 * at + i): b"m" * 1_000 for i in range(100)}
                try:
                    store.commit_learners(at, at + 1, {"cluster": b"%d" % at}, models)
                except StoreUnavailable:
                    assert store.learners() == (at, {"cluster": b"%d" % (at - 1)})
                    assert {store.learned_model(*each) for each in models} == {None}
                    break
                assert store.learners() == (at + 1, {"cluster": b"%d" % at})
            else:
                pytest.fail("Redis never was full")

    def test_a_commit_that_fills_redis_is_whole(self, server: RealRedis, admin: redis.Redis) -> None:
        """Where memory runs out in the middle of commits, each is stored whole or not at all."""
        with closing(RedisStore(server.url, "segmenter")) as store:
            store.acquire(0, "t", START, {})
            at, size, number, refusals = 10, 5_000, 1, 0
            admin.config_set("maxmemory", str(admin.info("memory")["used_memory"] + 4_000_000))
            for _ in range(40):
                commit = commit_of(
                    "t",
                    number,
                    {"purchases": Range(at, at + size)},
                    rows=[(f"customer-{at + i}", b"r" * 90) for i in range(size)],
                    entry=entry_of(number),
                )
                before = held(store)
                try:
                    store.commit(commit)
                except StoreUnavailable:
                    refusals += 1
                    assert held(store) == before
                    if refusals == 3:
                        break
                else:
                    now = held(store)
                    assert now.header.commits == number
                    number += 1
                    at += size
                    assert now.header.offsets["purchases"] == at
                    assert len(now.rows) == at - 10
                    assert now.header.entries[-1] == commit.entry
            assert at > 10
            assert refusals == 3


class TestReplica:
    """The address leads to a read-only replica, as after a failover."""

    @pytest.fixture
    def primary(self, start_redis: StartRedis) -> RealRedis:
        """A Redis that has a shard."""
        primary = start_redis(aof=False, password=PASSWORD, config={"repl-diskless-sync-delay": "0"})
        with closing(RedisStore(primary.url, "segmenter")) as store:
            store.register(4, "segmenter")
            started(store)
        return primary

    @pytest.fixture
    def replica(self, primary: RealRedis, start_redis: StartRedis) -> RealRedis:
        """Its read-only copy, in step with it."""
        quoted = '"' + PASSWORD.replace("\\", "\\\\").replace('"', '\\"') + '"'
        config = {"replicaof": f"{LOOPBACK} {primary.port}", "masterauth": quoted}
        replica = start_redis(aof=False, password=PASSWORD, config=config)
        with redis.Redis.from_url(primary.url) as of_primary, redis.Redis.from_url(replica.url) as of_replica:
            deadline = time.monotonic() + 30
            while not of_replica.exists("{segmenter:0}:shard") or not of_primary.wait(1, 100):
                assert time.monotonic() < deadline, of_replica.info("replication")
                time.sleep(0.05)
        return replica

    def test_a_replica_is_read_and_not_written(self, primary: RealRedis, replica: RealRedis) -> None:
        """A replica raises StoreUnavailable for every write and shows what the primary has."""
        with (
            closing(RedisStore(primary.url, "segmenter")) as of_primary,
            closing(RedisStore(replica.url, "segmenter")) as of_replica,
        ):
            before = held(of_primary)
            for operate in (*WRITES.values(), EVERYTHING["acknowledge"]):
                assert "read only" in refused(of_replica, StoreUnavailable, operate)
            assert held(of_replica) == held(of_primary) == before
            assert of_replica.partitions() == 4

    def test_a_promoted_replica_takes_over(self, primary: RealRedis, replica: RealRedis) -> None:
        """Once the replica is promoted the same store writes to it."""
        with closing(RedisStore(replica.url, "segmenter")) as store, redis.Redis.from_url(replica.url) as raw:
            before = held(store)
            refused(store, StoreUnavailable, EVERYTHING["commit"])
            raw.replicaof("NO", "ONE")
            assert held(store) == before
            store.commit(NEXT)
            assert store.header(0).offsets["purchases"] == 30


class _Forgetful:
    """Stands between a store and Redis; hangs up instead of handing on the next ``losing`` answers to commits."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.losing = 0
        self._target = target
        self._server = socket.create_server((LOOPBACK, 0))
        self.address = f"{LOOPBACK}:{self._server.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as upstream, suppress(OSError):
            back = threading.Thread(target=self._answer, args=(client, upstream))
            back.start()
            while asked := client.recv(65536):
                upstream.sendall(asked)
            upstream.shutdown(socket.SHUT_WR)
            back.join()

    def _answer(self, client: socket.socket, upstream: socket.socket) -> None:
        with suppress(OSError):
            while answer := upstream.recv(65536):
                if self.losing and re.fullmatch(rb"\$\d+\r\n(ok|lost .*)\r\n", answer):
                    self.losing -= 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def close(self) -> None:
        """Stop listening and wait for the connections to end."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def forgetful(server: RealRedis) -> Iterator[tuple[RedisStore, _Forgetful]]:
    """A store whose answers to commits can be lost on the way."""
    with closing(_Forgetful((LOOPBACK, server.port))) as between:
        store = RedisStore(f"redis://{between.address}/0", "segmenter")
        try:
            yield store, between
        finally:
            store.close()


class TestLostAnswer:
    """A commit reached Redis, and its answer was lost on the way back."""

    def test_a_batch_that_got_through_is_not_folded_twice(self, redis_server: RealRedis, raw: redis.Redis) -> None:
        """The commit is stored once; the repeated attempt is refused, so that the worker loads what Redis holds."""
        with forgetful(redis_server) as (store, between):
            started(store)
            between.losing = 1
            with pytest.raises(LostBatch):
                store.commit(NEXT)
            assert between.losing == 0
            header = store.header(0)
            assert header.offsets["purchases"] == 30
            assert [entry.id for entry in header.entries] == ["1-t", "2-t"]
            assert store.row(0, "fresh") == b"fresh"

    def test_a_lapse_that_got_through_is_not_written_twice(self, redis_server: RealRedis, raw: redis.Redis) -> None:
        """The same holds for a commit without records: it is counted once, and its repetition refused."""
        with forgetful(redis_server) as (store, between):
            started(store)
            between.losing = 1
            with pytest.raises(LostBatch, match=r"2 commits.*number 2"):
                store.commit(full_commit("t", {}))
            assert between.losing == 0
            header = store.header(0)
            assert header.commits == 2
            assert [entry.id for entry in header.entries] == ["1-t", "2-t"]
            assert store.row(0, "kept") == b"changed"

    def test_a_line_that_stays_bad_is_unavailable(self, redis_server: RealRedis, raw: redis.Redis) -> None:
        """When every answer is lost the commit ends in StoreUnavailable, though it is stored."""
        with forgetful(redis_server) as (store, between):
            started(store)
            between.losing = 100
            with pytest.raises(StoreUnavailable):
                store.commit(full_commit("t", {}))
            between.losing = 0
            header = store.header(0)
            assert header.commits == 2
            assert [entry.id for entry in header.entries] == ["1-t", "2-t"]


@contextmanager
def limited(server: RealRedis, raw: redis.Redis, *rules: str) -> Iterator[RedisStore]:
    """The store of a user who may do everything but for these rules."""
    raw.execute_command("ACL", "SETUSER", "limited", "reset", "on", f">{PASSWORD}", "~*", "+@all", *rules)
    try:
        with closing(RedisStore(url_with(server, PASSWORD, "limited"), "segmenter")) as store:
            yield store
    finally:
        raw.acl_deluser("limited")


class TestForbidden:
    """The login is right, and may not do everything."""

    @pytest.fixture
    def store(self, redis_server: RealRedis, raw: redis.Redis) -> Iterator[RedisStore]:
        """The store of a user who may do everything."""
        with closing(RedisStore(redis_server.url, "segmenter")) as store:
            yield store

    @pytest.mark.parametrize(
        ("command", "name"),
        [
            ("evalsha", "register"),
            ("evalsha", "acquire"),
            ("evalsha", "header"),
            ("evalsha", "commit"),
            ("hdel", "acknowledge"),
            ("hget", "row"),
            ("hscan", "rows"),
            ("hgetall", "segments"),
        ],
    )
    def test_a_forbidden_command_is_a_reason_to_stop(
        self, redis_server: RealRedis, raw: redis.Redis, store: RedisStore, command: str, name: str
    ) -> None:
        """A command that the user may not give raises ServiceUnavailable, which names it, and nothing is written."""
        started(store)
        before = contents(raw)
        with limited(redis_server, raw, f"-{command}") as forbidden:
            assert command in refused(forbidden, ServiceUnavailable, EVERYTHING[name])
        assert contents(raw) == before

    @pytest.mark.parametrize("name", sorted(EVERYTHING.keys() - {"ping"}))
    def test_forbidden_keys_are_a_reason_to_stop(
        self, redis_server: RealRedis, raw: redis.Redis, store: RedisStore, name: str
    ) -> None:
        """So does a user who may use other keys only, whatever is asked of the store."""
        started(store)
        before = contents(raw)
        with limited(redis_server, raw, "resetkeys", "~other:*") as forbidden:
            refused(forbidden, ServiceUnavailable, EVERYTHING[name])
        assert contents(raw) == before

    def test_no_commit_is_half_written(self, redis_server: RealRedis, raw: redis.Redis, store: RedisStore) -> None:
        """Whichever command is forbidden inside the commit's script, it is written as a whole or not at all."""
        refusing = set()
        for command in ("del", "exists", *sorted(raw.acl_cat("hash"))):
            raw.flushdb()
            started(store)
            before = contents(raw)
            with limited(redis_server, raw, f"-{command}") as forbidden:
                try:
                    forbidden.commit(NEXT)
                except (StoreUnavailable, ServiceUnavailable):
                    refusing.add(command)
                    assert contents(raw) == before, command
                    store.commit(NEXT)
            header, rows, segments = held(store)
            assert header.commits == 2, command
            assert rows == {"kept": b"changed", "fresh": b"fresh"}, command
            assert segments == NEXT.segments, command
        assert {"hget", "hset", "hdel"} <= refusing

    def test_no_shard_is_half_taken(self, redis_server: RealRedis, raw: redis.Redis, store: RedisStore) -> None:
        """Whichever command is forbidden inside the script that takes a shard, its owner stays who it was."""
        started(store)
        before, refusing = contents(raw), set()
        for command in sorted(raw.acl_cat("hash")):
            with limited(redis_server, raw, f"-{command}") as forbidden:
                try:
                    forbidden.acquire(0, "u", START, {})
                except ServiceUnavailable:
                    refusing.add(command)
                    assert contents(raw) == before, command
                store.acquire(0, "t", {}, {})
        assert refusing == {"hlen", "hset", "hsetnx", "hgetall"}

    def test_no_learning_is_half_written(self, redis_server: RealRedis, raw: redis.Redis, store: RedisStore) -> None:
        """Whichever command is forbidden inside the script that keeps learners, it writes everything or nothing."""
        refusing = set()
        for command in sorted(raw.acl_cat("hash")):
            raw.flushdb()
            for start in (None, 1):
                before = contents(raw)
                with limited(redis_server, raw, f"-{command}") as forbidden:
                    try:
                        forbidden.commit_learners(start, 1, {"cluster": b"{}"}, {("cluster", start or 0): b"null"})
                    except (StoreUnavailable, ServiceUnavailable):
                        refusing.add(command)
                        assert contents(raw) == before, command
                        store.commit_learners(start, 1, {"cluster": b"{}"}, {("cluster", start or 0): b"null"})
            assert store.learners() == (1, {"cluster": b"{}"}), command
            assert [store.learned_model("cluster", each) for each in (0, 1)] == [b"null"] * 2, command
        assert {"hget", "hset", "hexists"} <= refusing


def layout_with(text: str) -> tuple[str, str, str]:
    """The stored layout, replaced by a text."""
    return ("shard", f"layout:{LAYOUT.id}", text)


class TestDamaged:
    """What is stored is not what the segmenter has written."""

    @pytest.fixture
    def store(self, redis_server: RealRedis, raw: redis.Redis) -> Iterator[RedisStore]:
        """A store with a shard."""
        with closing(RedisStore(redis_server.url, "segmenter")) as store:
            started(store)
            yield store

    @pytest.mark.parametrize("part", ["customers", "outbox", "segments", "values"])
    def test_a_key_of_another_type_refuses_the_commit_whole(
        self, raw: redis.Redis, store: RedisStore, part: str
    ) -> None:
        """Where one of the shard's keys is no hash a commit writes to none of the others either."""
        key = f"{{segmenter:0}}:{part}"
        raw.set(key, "no hash")
        before = contents(raw)
        for commit in (NEXT, commit_of("t", 2, {})):
            with pytest.raises(StoreUnavailable, match=r"WRONGTYPE|wrong kind of value"):
                store.commit(commit)
            assert contents(raw) == before
        raw.delete(key)
        store.commit(NEXT)
        assert raw.hget("{segmenter:0}:shard", "commits") == b"2"

    @pytest.mark.parametrize(
        ("part", "field", "value"),
        [
            ("shard", "commits", "two"),
            ("shard", "commits", ""),
            ("shard", "time", "1704447000.5"),
            ("shard", "offset:purchases", "0x14"),
            ("shard", "offset:purchases", ""),
            ("shard", "backfill:purchases", "4O"),
            ("shard", "layout:x", LAYOUT.json),
            layout_with("{"),
            layout_with("[]"),
            layout_with("null"),
            layout_with('{"format":1}'),
            layout_with('{"format":1,"currency":"USD","dimensions":["lifecycle"],"attributes":[]}'),
            layout_with('{"format":1,"currency":"USD","dimensions":{"lifecycle":3},"attributes":[]}'),
            ("values", "country:2", "a code is left out"),
            ("values", "country:-1", "negative"),
            ("values", "country:x", "no code"),
            ("values", "country", "no code either"),
            ("values", "country:0", b"\xff"),
            ("values", b"\xff:0", "no text"),
            ("outbox", "1-t", "{"),
            ("outbox", "1-t", "[]"),
            ("outbox", "1-t", '{"format":1}'),
            ("outbox", "x-t", entry_of(1).encode()),
        ],
    )
    def test_a_damaged_header_is_told(
        self, raw: redis.Redis, store: RedisStore, part: str, field: str | bytes, value: str | bytes
    ) -> None:
        """Numbers, layouts, dictionaries and entries that cannot be read raise StateError, which says what to do."""
        raw.hset(f"{{segmenter:0}}:{part}", field, value)  # type: ignore[arg-type]
        for operate in (EVERYTHING["header"], EVERYTHING["acquire"]):
            with pytest.raises(StateError, match=r"damaged.*restore"):
                operate(store)

    @pytest.mark.parametrize(
        ("part", "field", "value"),
        [layout_with('{"format":4}'), ("outbox", "1-t", '{"format":2}')],
        ids=["layout", "outbox"],
    )
    def test_a_newer_format_is_told(
        self, raw: redis.Redis, store: RedisStore, part: str, field: str, value: str
    ) -> None:
        """A later format is told as such, even where nothing else of it can be understood."""
        raw.hset(f"{{segmenter:0}}:{part}", field, value)
        for operate in (EVERYTHING["header"], EVERYTHING["acquire"]):
            with pytest.raises(StateError, match=r"in format [24].*newer version"):
                operate(store)

    @pytest.mark.parametrize("size", ["{", "[]", "7", '{"customers":1}', '{"customers":1,"revenue_minor":"x"}'])
    def test_a_damaged_segment_is_told(self, raw: redis.Redis, store: RedisStore, size: str) -> None:
        """The size of a segment that cannot be read raises StateError."""
        raw.hset("{segmenter:0}:segments", "lifecycle:new", size)
        with pytest.raises(StateError, match=r"damaged.*restore"):
            store.segments(0)

    def test_a_key_of_another_type_refuses_learning(self, raw: redis.Redis, store: RedisStore) -> None:
        """Where the learners' key is no hash nothing is written, and nothing can be read."""
        raw.set("segmenter:clusters", "no hash")
        before = contents(raw)
        for name in ("commit_learners", "learners", "learned_model"):
            with pytest.raises(StoreUnavailable, match=r"WRONGTYPE|wrong kind of value"):
                EVERYTHING[name](store)
            assert contents(raw) == before
        raw.delete("segmenter:clusters")
        EVERYTHING["commit_learners"](store)
        assert store.learners() == (1, {"cluster": b"{}"})

    @pytest.mark.parametrize("offset", ["", "0x14", "1.5", "x"])
    def test_a_damaged_offset_of_learners_is_told(self, raw: redis.Redis, store: RedisStore, offset: str) -> None:
        """It raises StateError, which names key and field."""
        raw.hset("segmenter:clusters", "offset", offset)
        with pytest.raises(StateError, match=r"field offset of segmenter:clusters.*damaged.*STATE\.md"):
            store.learners()

    def test_a_value_that_cannot_be_sent_is_a_bug(self, raw: redis.Redis, store: RedisStore) -> None:
        """What is no text, number or bytes is nobody's outage: the error is raised as it is, and nothing is written."""
        before = contents(raw)
        with pytest.raises(redis.DataError):
            store.commit(commit_of("t", 2, {}, rows=[("c", None)]))
        assert contents(raw) == before
