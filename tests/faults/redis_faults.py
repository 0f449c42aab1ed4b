"""What may happen to Redis, and to the way to it."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis.cluster

from tests.faults.kafka_faults import Proxied, proxy_of
from tests.faults.proxy import Proxy
from tests.faults.run import Again, Lane, Run, Servers, fault, servers
from tests.support.commands import eventually
from tests.support.real_redis import RealRedis, RealRedisCluster
from tests.support.topics import CHANGES

#: Seconds.
UNREACHABLE = 30.0


@dataclass
class Replicated:
    """A master and its replica, which follows it through ``link``; ``url`` leads to whoever is the master."""

    master: RealRedis
    replica: RealRedis
    link: Proxy
    front: Proxy
    password: None = field(default=None)

    @property
    def url(self) -> str:
        """Through the proxy that can be switched."""
        return f"redis://{self.front.address}/0"


@servers("replicated redis")
def _replicated(lane: Lane) -> Iterator[Servers]:
    """A master with a replica; everybody reaches the master through a proxy."""
    with RealRedis() as master, RealRedis() as replica, Proxy(master.address) as link, Proxy(master.address) as front:
        replica.follow(link.address)
        given = Proxied(lane.shared.servers.kafka, Replicated(master, replica, link, front))
        given.proxy = front
        yield given


@servers("proxied redis")
def _proxied(lane: Lane) -> Iterator[Servers]:
    """A Redis of the run's own, that workers reach through a proxy only."""
    with RealRedis() as own, Proxy(own.address) as proxy:
        given = Proxied(lane.shared.servers.kafka, own, {"SEGMENTER_REDIS": f"redis://{proxy.address}/0"})
        given.proxy = proxy
        yield given


class _ClusterServers(Servers):
    def client(self) -> Any:
        """A client that knows the cluster."""
        return redis.cluster.RedisCluster.from_url(self.redis.url)


@servers("redis cluster")
def _cluster(lane: Lane) -> Iterator[Servers]:
    """Three masters."""
    with RealRedisCluster() as cluster:
        yield _ClusterServers(lane.shared.servers.kafka, cluster)


# --- the server and its data ------------------------------------------------------------------------------------


@fault("Redis killed and restarted from its AOF", group="redis", servers="redis", selected=True)
def redis_killed(run: Run) -> None:
    """SIGKILL; it is back after a while with what it had on disk."""
    run.until_produced(run.rng.uniform(0.1, 0.8))
    run.mark()
    run.redis.kill()
    time.sleep(run.rng.uniform(0, 2))
    run.redis.start()


@fault("Redis restored from an older backup", group="redis", servers="redis", selected=True)
def older_backup(run: Run) -> None:
    """It comes back as it was some seconds before, under workers that had gone on: they rewind."""
    run.until_produced(run.rng.uniform(0.1, 0.4))
    run.redis.back_up(run.folder / "backup")
    before = _read(run)
    run.until_produced(run.rng.uniform(0.6, 0.9))
    run.mark()
    if _read(run) <= before:
        raise Again("nothing was folded between the backup and the crash")
    run.redis.restore(run.folder / "backup")


@fault("Redis emptied under a running fleet", group="redis", servers="redis", selected=True)
def emptied(run: Run) -> None:
    """FLUSHALL under load: everything is rebuilt from Kafka, and nothing is told under another id."""
    run.until_produced(run.rng.uniform(0.3, 0.8))
    run.mark()
    run.redis.ask("FLUSHALL")


@fault("Redis emptied while no worker runs", group="redis", servers="redis")
def emptied_in_between(run: Run) -> None:
    """The same with workers that start on nothing: what comes again is marked as history."""
    run.until_produced(run.rng.uniform(0.3, 0.7))
    run.hold()
    eventually(run.settled, 60, "everything produced is folded")
    for worker in run.workers:
        run.terminate(worker)
    told = {change["change_id"] for change in run.topics.changes()}
    ends = run.topics.ends(CHANGES)
    run.mark()
    run.redis.ask("FLUSHALL")
    for worker in run.workers:
        run.restart(worker, ready=False)
    for worker in run.workers:
        worker.ready()
    eventually(run.settled, 60, "the state is rebuilt")
    again = _changes_from(run, ends)
    fired = [change["change_id"] for change in again if not change["backfill"]]
    assert {change["change_id"] for change in again} == told, "the rebuilding told something else"
    assert not fired, f"{len(fired)} changes came again and were not marked as history, such as {fired[0]}"
    run.release()


@fault("Redis out of memory", group="redis", servers="redis")
def out_of_memory(run: Run) -> None:
    """Every write is refused (noeviction) for a while; then there is memory again."""
    run.until_produced(run.rng.uniform(0.2, 0.6))
    run.mark()
    run.redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    run.redis.ask("CONFIG", "SET", "maxmemory", "1mb")
    time.sleep(run.rng.uniform(2, 6))
    run.redis.ask("CONFIG", "SET", "maxmemory", "0")


# --- the way to it ----------------------------------------------------------------------------------------------


@fault("Redis unreachable for 30 s", group="redis", servers="proxied redis")
def unreachable(run: Run) -> None:
    """Connections are refused, or taken and not answered."""
    proxy = proxy_of(run)
    run.until_produced(run.rng.uniform(0.1, 0.7))
    run.mark()
    if run.rng.random() < 0.5:
        proxy.refuse()
    else:
        proxy.black_hole()
    time.sleep(UNREACHABLE)
    proxy.heal()


@fault("connections to Redis cut again and again", group="redis", servers="proxied redis")
def cut_connections(run: Run) -> None:
    """All connections of the workers are reset every now and then: whether a commit got through is not known."""
    run.until_produced(run.rng.uniform(0.05, 0.3))
    run.mark()
    for _ in range(run.rng.randint(20, 40)):
        proxy_of(run).cut()
        time.sleep(run.rng.uniform(0.02, 0.2))


@fault("Redis is a read-only replica for a while", group="redis", servers="replicated redis")
def read_only(run: Run) -> None:
    """Workers are pointed at the replica, which refuses every write until it is made a master."""
    servers = run.redis
    run.until_produced(run.rng.uniform(0.1, 0.7))
    run.mark()
    servers.front.switch(servers.replica.address)
    time.sleep(run.rng.uniform(1, 5))
    servers.replica.promote()


@fault("failover to a replica that lags", group="redis", servers="replicated redis")
def failover(run: Run) -> None:
    """The master dies while its replica has not heard of the last seconds; the replica takes its place."""
    servers = run.redis
    run.until_produced(run.rng.uniform(0.1, 0.4))
    servers.link.black_hole()
    before = _read(run)
    run.until_produced(run.rng.uniform(0.6, 0.9))
    run.mark()
    if _read(run) <= before:
        raise Again("the replica did not lag")
    servers.master.kill()
    time.sleep(run.rng.uniform(0, 1))
    servers.replica.promote()
    servers.front.switch(servers.replica.address)


# --- a cluster --------------------------------------------------------------------------------------------------


@fault("slots of a Redis Cluster migrate under load", group="redis", servers="redis cluster")
def slots_migrate(run: Run) -> None:
    """The slots of all shards, and of what all shards share, move to other masters, key by key."""
    cluster, name = run.redis, run.settings["SEGMENTER_NAMESPACE"]
    keys = [f"{{{name}:{shard}}}:shard" for shard in range(4)]
    run.until_produced(run.rng.uniform(0.05, 0.2))
    run.mark()
    for slot in run.rng.sample([cluster.slot_of(key) for key in keys], len(keys)):
        owner = cluster.owner_of(slot)
        target = run.rng.choice([member for member in cluster.members if member is not owner])
        cluster.migrate(slot, target, pause=run.rng.uniform(0, 0.3))


def _read(run: Run) -> int:
    """How many records are in the state."""
    return sum(sum(run.state.offsets(shard).values()) for shard in range(4))


def _changes_from(run: Run, ends: dict[int, int]) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"null") for record in run.topics.read(CHANGES, ends)]
