"""Real Redis servers for tests, to be killed and restarted at will: the embedded one, with its data on disk.

A kill loses nothing that a client was told is written, but for what Redis itself allows with ``everysec``: while a
sync is under way it may hold later writes back for up to two seconds. A test that kills under heavy writing and must
not lose any passes ``config={"appendfsync": "always"}``.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streams.embedded.redis import EmbeddedRedis, find_redis_server
from streams.embedded.server import LOOPBACK
from streams.errors import ServiceUnavailable as RedisUnavailable

__all__ = ["RealRedis", "RealRedisCluster", "RedisUnavailable", "find_redis_server"]

SLOTS = 16_384
#: Where Redis keeps its append-only file: a folder since 7.0, a file before.
_APPENDED = ("appendonlydir", "appendonly.aof")


def _until(condition: Callable[[], object], what: str, within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within:g} s: {what}")
        time.sleep(0.05)


class RealRedis(EmbeddedRedis):
    """EmbeddedRedis with its append-only file on."""

    def __init__(
        self, *, aof: bool = True, password: str | None = None, config: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(aof=aof, password=password, config=config)

    def ask(self, *command: object) -> Any:
        """The answer to one command, over a connection of its own."""
        with redis.Redis(
            host=LOOPBACK, port=self.port, password=self._password, socket_timeout=20, retry=Retry(NoBackoff(), 0)
        ) as client:
            return client.execute_command(*command)

    def back_up(self, folder: Path) -> None:
        """Copy what is on disk at this moment, as a snapshot of the volume would."""
        for name in _APPENDED:
            source = self.home / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / name)

    def restore(self, folder: Path) -> None:
        """Stop, put a backup in the place of what is on disk, and start again."""
        self.kill()
        for name in _APPENDED:
            kept, target = folder / name, self.home / name
            shutil.rmtree(target, ignore_errors=True)
            target.unlink(missing_ok=True)
            if kept.is_dir():
                shutil.copytree(kept, target)
            elif kept.exists():
                shutil.copy(kept, target)
        self.start()

    def follow(self, address: str) -> None:
        """Become the read-only replica of the master at ``address``, which may be a proxy's, and catch up with it."""
        host, _, port = address.rpartition(":")
        self.ask("REPLICAOF", host, port)
        _until(lambda: self.ask("INFO", "replication").get("master_link_status") == "up", "the replica follows")

    def promote(self) -> None:
        """Be a master, with what has been replicated."""
        self.ask("REPLICAOF", "NO", "ONE")


class _Member(RealRedis):
    """One master of a cluster; its second port is for the others."""

    port_count: ClassVar[int] = 2

    def _prepare(self) -> tuple[str, ...]:
        self._config.update(
            {
                "cluster-enabled": "yes",
                "cluster-port": str(self._ports[1]),
                "cluster-node-timeout": "2000",
                "cluster-require-full-coverage": "no",
            }
        )
        return tuple(super()._prepare())

    @property
    def bus(self) -> int:
        """The port at which the other members talk to it."""
        return self._ports[1]

    @property
    def url(self) -> str:
        """A cluster has no numbered databases."""
        return super().url.removesuffix("/0")


class RealRedisCluster:
    """Three masters with a third of the slots each; ``url`` is that of the first. Needs Redis 7."""

    def __init__(self) -> None:
        self.members = [_Member() for _ in range(3)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start all three and join them. Raises RedisUnavailable if this machine's Redis is older than 7."""
        _require_redis_7()
        try:
            for number, member in enumerate(self.members):
                member.start()
                first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
                member.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            for member in self.members[1:]:
                member.ask("CLUSTER", "MEET", LOOPBACK, self.members[0].port, self.members[0].bus)
            _until(lambda: all(self._knows_all(member) for member in self.members), "the cluster is whole")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all, and remove their data."""
        for member in self.members:
            member.close()

    @property
    def url(self) -> str:
        """``redis://`` of one of the members, which is enough to find the others."""
        return self.members[0].url

    def _knows_all(self, member: _Member) -> bool:
        info = _fields(member.ask("CLUSTER", "INFO"))
        known = int(info["cluster_known_nodes"]), int(info["cluster_slots_ok"])
        return info["cluster_state"] == "ok" and known == (3, SLOTS)

    def slot_of(self, key: str) -> int:
        """The slot of a key."""
        return int(self.members[0].ask("CLUSTER", "KEYSLOT", key))

    def owner_of(self, slot: int) -> _Member:
        """The member that has a slot, as all agree."""
        owners = [self._owner(member, slot) for member in self.members]
        assert len(set(owners)) == 1, "the members do not agree"
        return next(member for member in self.members if member.port == owners[0])

    @staticmethod
    def _owner(member: _Member, slot: int) -> int:
        for first, last, master, *_ in member.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(master[1])
        raise AssertionError(f"nobody has slot {slot}")

    def migrate(self, slot: int, target: _Member, pause: float = 0.0) -> None:
        """Move a slot with all that is in it, key by key, ``pause`` seconds after each, as ``redis-cli`` would."""
        source = self.owner_of(slot)
        source_id, target_id = (str(each.ask("CLUSTER", "MYID"), "ascii") for each in (source, target))
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.ask("MIGRATE", LOOPBACK, target.port, keys[0], 0, 10_000)
            time.sleep(pause)
        # The new owner first, so that there is always one.
        for member in (target, source, *(each for each in self.members if each not in (source, target))):
            member.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)


def _fields(answer: Any) -> dict[str, str]:
    """CLUSTER INFO's lines, which redis-py may have taken apart already."""
    if isinstance(answer, dict):
        return {str(name): str(value) for name, value in answer.items()}
    return dict(line.split(":", 1) for line in answer.decode().splitlines() if ":" in line)


def _require_redis_7() -> None:
    with EmbeddedRedis() as probe, redis.Redis(port=probe.port) as client:
        version = str(client.info("server")["redis_version"])
    if int(version.partition(".")[0]) < 7:
        raise RedisUnavailable(f"a Redis Cluster of this test needs redis-server 7 or newer, this is {version}")
