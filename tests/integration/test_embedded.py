"""The embedded stack is gone with the process that started it, whatever ends that process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from streams.embedded.broker import EmbeddedBroker
from streams.embedded.redis import EmbeddedRedis, find_redis_server
from streams.embedded.stack import EmbeddedStack
from streams.errors import ServiceUnavailable
from streams.settings import Settings
from tests.support import in_process
from tests.support.commands import environment, eventually
from tests.support.topics import Topics

PARENT = """
import sys
from streams.embedded.stack import EmbeddedStack
from streams.settings import Settings
with EmbeddedStack(Settings()) as stack:
    print(stack.redis.pid, stack.redis.address, stack.broker.address, stack.redis.home, flush=True)
    command = sys.stdin.readline().strip()
    if command == "raise":
        raise RuntimeError("the program failed")
"""


@pytest.fixture(autouse=True)
def server_program() -> None:
    """Without a redis-server there is nothing to test."""
    try:
        find_redis_server()
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))


@contextmanager
def _parent() -> Iterator[tuple["subprocess.Popen[str]", int, list[str], Path]]:
    """A process that runs a stack: itself, Redis's pid, both addresses, Redis's folder."""
    with subprocess.Popen(
        (sys.executable, "-c", PARENT),
        env=environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        try:
            assert parent.stdout is not None
            pid, *addresses, home = parent.stdout.readline().split()
            yield parent, int(pid), addresses, Path(home)
        finally:
            parent.kill()


def _listens(address: str) -> bool:
    host, port = address.split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except OSError:
        return False


def _runs(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_broker_and_redis_die_with_their_parent(number: signal.Signals) -> None:
    """Not even SIGKILL leaves a server behind."""
    with _parent() as (parent, pid, addresses, _):
        assert _runs(pid)
        assert all(map(_listens, addresses))
        os.kill(parent.pid, number)
        parent.wait(timeout=20)
        eventually(lambda: not _runs(pid), 10, "Redis ends")
        eventually(lambda: not any(map(_listens, addresses)), 10, "nobody listens")


@pytest.mark.parametrize(("command", "code"), [("raise", 1), ("end", 0)])
def test_nothing_is_left_after_an_end_in_good_order(command: str, code: int) -> None:
    """An exception and the end of the block: no server and no file stays."""
    with _parent() as (parent, pid, addresses, home):
        assert home.is_dir()
        parent.communicate(f"{command}\n", timeout=20)
        assert parent.returncode == code
        assert not _runs(pid)
        assert not any(map(_listens, addresses))
        assert not home.exists()


def test_stack_serves_its_topics_and_redis() -> None:
    """Every topic of the settings exists, empty and co-partitioned; ``environment`` names both servers."""
    settings = Settings(purchases_topic="my.purchases", changes_topic="my.changes")
    with EmbeddedStack(settings) as stack:
        given = stack.environment()
        assert given == {"SEGMENTER_BROKER": stack.broker.address, "SEGMENTER_REDIS": stack.redis.url}
        with Topics(stack.broker.address) as topics, redis.Redis.from_url(stack.redis.url) as client:
            for topic in (*settings.topics.values(), *settings.output_topics):
                assert topics.ends(topic) == dict.fromkeys(range(4), 0)
            assert client.ping()


def test_two_stacks_do_not_meet() -> None:
    """Each has servers and ports of its own."""
    with EmbeddedStack(Settings()) as one, EmbeddedStack(Settings()) as two:
        assert len({one.broker.address, two.broker.address, one.redis.address, two.redis.address}) == 4
        with Topics(one.broker.address) as mine, Topics(two.broker.address) as theirs:
            mine.send("purchases", b"{}", b"c")
            mine.flush()
            assert (mine.size("purchases"), theirs.size("purchases")) == (1, 0)


def test_redis_keeps_its_address_and_with_aof_its_data() -> None:
    """A kill and a start keep the port; the data stays only with the append-only file."""
    for aof in (True, False):
        with EmbeddedRedis(aof=aof, config={"appendfsync": "always"}) as server:
            address = server.address
            with redis.Redis.from_url(server.url) as client:
                client.set("key", "value")
                server.kill()
                assert not server.running
                server.start()
                assert server.address == address
                assert client.get("key") == (b"value" if aof else None)


def test_redis_asks_for_its_password() -> None:
    """The password is in the URL, quoted, and in no process list."""
    with EmbeddedRedis(password="a b/c@d:é") as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        with redis.Redis.from_url(f"redis://{server.address}/0") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        assert b"a b/c@d" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()


def test_the_broker_refuses_what_takes_transactions() -> None:
    """Dead letters would be retried by halves: a transaction that is undone has been read by others."""
    with EmbeddedBroker() as broker:
        settings = {"SEGMENTER_BROKER": broker.address}
        assert "has no transactions" in in_process.refused("dead-letters", "retry", settings=settings)
        assert "0 records would be" in in_process.output("dead-letters", "retry", "--dry-run", settings=settings)


def test_broker_is_gone_when_closed() -> None:
    """After the block nobody listens on the broker's port."""
    with EmbeddedBroker() as broker:
        assert _listens(broker.address)
        address = broker.address
    eventually(lambda: not _listens(address), 10, "nobody listens")
