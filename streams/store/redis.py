"""RedisStore: a StateStore on Redis 6.2 or newer. One script call commits a batch, guarded and atomic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from itertools import chain
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

import numpy as np
import redis
from redis.exceptions import RedisClusterException

from models.activation import Activation
from models.counts import Count
from models.customers import CustomerIndex
from models.errors import StateError
from models.events import Role
from models.population import Summary
from streams.ahead import ahead
from streams.commit import ShardCommit, ShardHeader
from streams.errors import FleetMismatch, LostBatch, StaleOwner, StoreUnavailable
from streams.ports import Moment
from streams.store import codec, scripts
from streams.store.connect import Client, Connection, Script, Tls, told
from streams.store.keys import clusters_key, fleet_key, policy_key, shard_keys

P = ParamSpec("P")
R = TypeVar("R")

NO_TLS: Final = Tls()
#: Customers asked for at once.
_AT_ONCE: Final = 5_000


def _translated(
    method: Callable[Concatenate[RedisStore, P], R],
) -> Callable[Concatenate[RedisStore, P], R]:
    """Redis's errors as this project's."""

    @wraps(method)
    def call(self: RedisStore, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except redis.DataError:
            raise
        except (redis.RedisError, RedisClusterException) as error:
            raise told(self.address, error) from None

    return cast("Callable[Concatenate[RedisStore, P], R]", call)


def _pairs(fields: Mapping[str, Any]) -> list[Any]:
    return [len(fields), *(part for pair in fields.items() for part in pair)]


class RedisStore:
    """See StateStore. ``url`` is redis://[user:password@]host:port/db, rediss:// or unix://.

    It may be a server of a Redis Cluster. Every method then uses one slot: that of a shard, or of a single key.
    """

    def __init__(self, url: str, namespace: str, timeout: float = 3.0, tls: Tls = NO_TLS) -> None:
        self._connection = Connection(url, timeout, tls)
        self.address = self._connection.address
        self._namespace = namespace
        self._register = Script(self._connection, scripts.REGISTER)
        self._acquire = Script(self._connection, scripts.ACQUIRE)
        self._script = Script(self._connection, scripts.COMMIT)
        self._read = Script(self._connection, scripts.READ)
        self._activate = Script(self._connection, scripts.ACTIVATE)
        self._learn = Script(self._connection, scripts.LEARN)
        self._learned = Script(self._connection, scripts.LEARNERS)
        self._moment = Script(self._connection, scripts.MOMENT)
        self._policy = policy_key(namespace)
        self._clusters = clusters_key(namespace)

    @property
    def _redis(self) -> Client:
        return self._connection.client

    def close(self) -> None:
        """Give the connections back."""
        self._connection.close()

    def hurried(self) -> AbstractContextManager[bool]:
        """See StateStore."""
        return self._connection.hurried()

    @_translated
    def ping(self) -> None:
        """Raise if Redis cannot be used."""
        self._redis.ping()

    @_translated
    def register(self, partitions: int, group: str, cluster: str = "") -> None:
        """See StateStore."""
        key = fleet_key(self._namespace)
        fields = ["partitions", str(partitions), "group", group, *(("cluster", cluster) if cluster else ())]
        answer = cast(list[bytes | None], self._register(keys=[key], args=fields))
        stored, owner, kafka, coming = ((part or b"").decode() for part in answer)
        if coming:
            raise FleetMismatch(
                f"a repartition of namespace {self._namespace!r} to {coming} partitions is under way; run "
                f"`segmenter repartition --partitions {coming}` to finish it"
            )
        if stored != str(partitions):
            raise FleetMismatch(
                f"Redis namespace {self._namespace!r} holds shards of {stored} partitions, the input topics have "
                f"{partitions}; if they have been given more, run: segmenter repartition --partitions {partitions}; "
                "else use another SEGMENTER_NAMESPACE"
            )
        self._require_own(owner, group, kafka, cluster)

    def _require_own(self, owner: str, group: str, kafka: str, cluster: str) -> None:
        """Raise FleetMismatch if the namespace is another fleet's; what is empty is not known."""
        if owner != group and owner and group:
            raise FleetMismatch(
                f"Redis namespace {self._namespace!r} belongs to consumer group {owner!r}, not {group!r}; "
                "give each fleet its own SEGMENTER_NAMESPACE"
            )
        if kafka != cluster and kafka and cluster:
            raise FleetMismatch(
                f"Redis namespace {self._namespace!r} was filled from the Kafka cluster {kafka}, SEGMENTER_BROKER is "
                f"of {cluster}, whose offsets mean other records; give each fleet its own SEGMENTER_NAMESPACE"
            )

    @_translated
    def partitions(self) -> int | None:
        """See StateStore."""
        stored = self._redis.hget(fleet_key(self._namespace), "partitions")
        if stored is None:
            return None
        try:
            return int(cast(bytes, stored))
        except ValueError:
            raise StateError(f"the number of partitions in {fleet_key(self._namespace)} is damaged") from None

    @_translated
    def run(self, script: str, keys: Sequence[str], args: Sequence[Any] = ()) -> Any:
        """What a Lua script answers; it happens as a whole. Raises StoreUnavailable."""
        return Script(self._connection, script)(keys=keys, args=args)

    @_translated
    def owner(self, shard: int) -> str | None:
        """See StateStore."""
        stored = cast(bytes | None, self._redis.hget(shard_keys(self._namespace, shard).shard, "owner"))
        return None if stored is None else stored.decode()

    @_translated
    def rebuilding(self) -> str | None:
        """See StateStore."""
        stored = cast(bytes | None, self._redis.hget(fleet_key(self._namespace), "rebuild"))
        return None if stored is None else stored.decode()

    @_translated
    def header(self, shard: int) -> ShardHeader:
        """See StateStore."""
        keys = shard_keys(self._namespace, shard)
        return self._header(self._read(keys=[keys.shard, keys.values, keys.outbox]))

    @staticmethod
    def _header(parts: list[list[bytes]]) -> ShardHeader:
        return codec.decode_header(*(dict(zip(part[::2], part[1::2], strict=True)) for part in parts))

    @_translated
    def acquire(
        self, shard: int, token: str, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int]
    ) -> ShardHeader:
        """See StateStore."""
        keys = shard_keys(self._namespace, shard)
        known = [part for role, offset in offsets.items() for part in (f"offset:{role}", offset)]
        known += [part for role, offset in backfill_until.items() for part in (f"backfill:{role}", offset)]
        return self._header(self._acquire(keys=[keys.shard, keys.values, keys.outbox], args=[token, *known]))

    @_translated
    def size(self, shard: int) -> int:
        """See StateStore."""
        return self._redis.hlen(shard_keys(self._namespace, shard).customers)

    def rows(self, shard: int) -> Iterator[list[tuple[str, bytes]]]:
        """See StateStore.

        A cursor means something only to the server that gave it: one that was restarted, or has taken the slot or the
        master's place, would pass rows over. So they are counted, unless the shard's owner has written meanwhile.
        """
        commits = self._commits(shard)
        # A set of their names would take several times as much memory.
        seen = CustomerIndex()
        seen.reserve(self.size(shard))
        for part in ahead(self._parts(shard)):
            names = list(map(bytes.decode, part))
            pairs = list(zip(names, part.values(), strict=True))
            new = (seen.find(names) < 0).nonzero()[0]
            if len(new) < len(names):
                pairs = [pairs[i] for i in new.tolist()]
                names = [name for name, _ in pairs]
            seen.add(names, np.arange(len(seen), len(seen) + len(names)))
            yield pairs
        stored = self.size(shard)
        if self._commits(shard) == commits and stored != len(seen):
            raise StoreUnavailable(
                f"Redis at {self.address} showed {len(seen)} of the {stored} customers of shard {shard}; "
                "another server answers since they began to be read"
            )

    @_translated
    def _commits(self, shard: int) -> bytes | None:
        return cast(bytes | None, self._redis.hget(shard_keys(self._namespace, shard).shard, "commits"))

    def _parts(self, shard: int) -> Iterator[dict[bytes, bytes]]:
        cursor, part = self._scan(shard, 0)
        while cursor:
            yield part
            cursor, part = self._scan(shard, cursor)
        yield part

    @_translated
    def _scan(self, shard: int, cursor: int) -> tuple[int, dict[bytes, bytes]]:
        customers = shard_keys(self._namespace, shard).customers
        return cast(tuple[int, dict[bytes, bytes]], self._redis.hscan(customers, cursor, count=10_000))

    @_translated
    def row(self, shard: int, customer: str) -> bytes | None:
        """See StateStore."""
        return cast(bytes | None, self._redis.hget(shard_keys(self._namespace, shard).customers, customer))

    @_translated
    def rows_of(self, shard: int, customers: Sequence[str]) -> list[tuple[str, bytes]]:
        """See StateStore."""
        key, found = shard_keys(self._namespace, shard).customers, list[tuple[str, bytes]]()
        for at in range(0, len(customers), _AT_ONCE):
            part = list(customers[at : at + _AT_ONCE])
            rows = cast(list[bytes | None], self._redis.hmget(key, part))
            found += [(customer, row) for customer, row in zip(part, rows, strict=True) if row is not None]
        return found

    @_translated
    def segments(self, shard: int) -> Mapping[str, Count]:
        """See StateStore."""
        stored = cast(dict[bytes, bytes], self._redis.hgetall(shard_keys(self._namespace, shard).segments))
        return {name.decode(): codec.decode_count(count) for name, count in stored.items()}

    @_translated
    def moment(self, shard: int, cursor: int | None, customers: Sequence[str] = (), count: int = 5_000) -> Moment:
        """See AuditedStore."""
        keys = shard_keys(self._namespace, shard)
        where = [keys.shard, keys.values, keys.outbox, keys.segments, keys.customers]
        args = ["", *customers] if cursor is None else [cursor, count]
        *parts, following, rows = cast(list[Any], self._moment(keys=where, args=args))
        sizes = {
            name.decode(): codec.decode_count(count) for name, count in zip(parts[3][::2], parts[3][1::2], strict=True)
        }
        stored = [(name.decode(), row) for name, row in zip(rows[::2], rows[1::2], strict=True)]
        return Moment(self._header(parts[:3]), sizes, stored, int(following))

    @_translated
    def latest_activation(self) -> int:
        """See StateStore."""
        return int(cast(bytes | None, self._redis.hget(self._policy, "latest")) or 0)

    @_translated
    def activation(self, number: int) -> Activation:
        """See StateStore."""
        stored = cast(bytes | None, self._redis.hget(self._policy, f"activation:{number}"))
        if stored is None:
            raise StateError(f"Redis at {self.address} has no activation {number}; restore it from a backup")
        return Activation.parse(number, stored)

    @_translated
    def policy_text(self, version: int) -> str | None:
        """See StateStore."""
        stored = cast(bytes | None, self._redis.hget(self._policy, f"policy:{version}"))
        return None if stored is None else stored.decode()

    @_translated
    def population(self) -> tuple[int, Summary] | None:
        """See StateStore."""
        as_of, stored = cast(list[bytes | None], self._redis.hmget(self._policy, ["population_as_of", "population"]))
        return None if as_of is None or stored is None else (int(as_of), Summary.parse(stored))

    @_translated
    def summarised(self, shard: int) -> Sequence[int]:
        """See StateStore."""
        fields = cast(list[bytes], self._redis.hkeys(shard_keys(self._namespace, shard).population))
        return sorted(int(field) for field in fields if field != b"first")

    @_translated
    def summary(self, shard: int, instant: int) -> Summary | None:
        """See StateStore."""
        key = shard_keys(self._namespace, shard).population
        first, stored = cast(list[bytes | None], self._redis.hmget(key, ["first", str(instant)]))
        if first is not None and instant < int(first):
            return Summary.empty()
        return None if stored is None else Summary.parse(stored)

    @_translated
    def activate(
        self, activation: Activation, policy_text: str | None = None, population: Summary | None = None
    ) -> bool:
        """See StateStore."""
        fields: dict[str, Any] = {"latest": activation.number, f"activation:{activation.number}": activation.json}
        if policy_text is not None:
            fields[f"policy:{activation.policy_version}"] = policy_text
        if population is not None:
            fields |= {"population_as_of": activation.cutoffs.as_of, "population": population.json}
        args = [activation.number - 1, *(part for pair in fields.items() for part in pair)]
        return bool(self._activate(keys=[self._policy], args=args))

    @_translated
    def learners(self) -> tuple[int | None, Mapping[str, bytes]]:
        """See StateStore."""
        offset, *found = cast(list[bytes | None], self._learned(keys=[self._clusters]))
        names, learners = cast(list[bytes], found[::2]), cast(list[bytes], found[1::2])
        try:
            position = None if offset is None else int(offset)
        except ValueError:
            raise StateError(f"the field offset of {self._clusters} in Redis is damaged; see docs/STATE.md") from None
        return position, {name.decode(): each for name, each in zip(names, learners, strict=True)}

    @_translated
    def commit_learners(
        self, start: int | None, end: int, learners: Mapping[str, bytes], models: Mapping[tuple[str, int], bytes]
    ) -> None:
        """See StateStore."""
        replaced = ["offset", end, *(part for name, each in learners.items() for part in (f"learner:{name}", each))]
        once = [part for (name, as_of), each in models.items() for part in (f"model:{name}:{as_of}", each)]
        args = ["" if start is None else start, len(replaced), *replaced, *once]
        answer = cast(bytes, self._learn(keys=[self._clusters], args=args)).decode()
        if answer.startswith("lost"):
            stored = answer.partition(" ")[2]
            raise LostBatch(f"the learners are at offset {stored}, what was learned begins at {start}")

    @_translated
    def learned_model(self, dimension: str, as_of: int) -> bytes | None:
        """See StateStore."""
        return cast(bytes | None, self._redis.hget(self._clusters, f"model:{dimension}:{as_of}"))

    @_translated
    def commit(self, commit: ShardCommit) -> None:
        """See StateStore."""
        ranges = [part for role, (start, end) in commit.ranges.items() for part in (role, start, end)]
        fields = {
            "commits": commit.number,
            "time": commit.time,
            "settled": commit.settled,
            "activation": commit.activation,
            "since": commit.since,
            "policy_version": commit.policy_version,
            f"layout:{commit.layout.id}": commit.layout.json,
        }
        summary: dict[str, bytes] = {}
        if commit.summary is not None:
            fields["summarised"] = commit.summary[0]
            summary = {str(commit.summary[0]): commit.summary[1]}
        entries = {} if commit.entry is None else {commit.entry.id: commit.entry.encode()}
        args = [
            commit.token,
            commit.number - 1,
            commit.activation,
            *(len(commit.ranges), *ranges),
            *_pairs(fields),
            *(len(commit.rows), *chain.from_iterable(commit.rows)),
            *_pairs(entries),
            *_pairs({name: codec.encode_count(count) for name, count in commit.segments.items()}),
            *_pairs(commit.values),
            *_pairs(summary),
            *(len(commit.erased), *commit.erased),
            commit.summary[0] if commit.summary is not None and commit.begins else "",
            "" if commit.forget is None else commit.forget,
        ]
        answer = cast(bytes, self._script(keys=shard_keys(self._namespace, commit.shard), args=args)).decode()
        if answer == "stale":
            raise StaleOwner(f"shard {commit.shard} has another owner; this worker's commit was refused")
        if answer.startswith("lost"):
            _, role, stored = answer.split(" ", 2)
            if role == "commit":
                raise LostBatch(
                    f"shard {commit.shard} has {stored} commits, this is number {commit.number}; nothing was written"
                )
            raise LostBatch(
                f"shard {commit.shard}: the batch of {role} starts at {commit.ranges[cast(Role, role)].start}, "
                f"the store is at {stored}; nothing was written"
            )

    @_translated
    def acknowledge(self, shard: int, entry_ids: Sequence[str]) -> int:
        """See StateStore."""
        if not entry_ids:
            return 0
        return self._redis.hdel(shard_keys(self._namespace, shard).outbox, *entry_ids)
