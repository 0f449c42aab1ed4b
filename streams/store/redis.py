"""RedisStore: a StateStore on Redis 6.2 or newer. One script call commits a batch, guarded and atomic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from models.activation import Activation
from models.counts import Count
from models.errors import StateError
from models.events import Role
from models.population import Summary
from streams.commit import ShardCommit, ShardHeader
from streams.errors import FleetMismatch, LostBatch, ServiceUnavailable, StaleOwner, StoreUnavailable
from streams.store import codec, scripts
from streams.store.keys import clusters_key, fleet_key, policy_key, shard_keys

P = ParamSpec("P")
R = TypeVar("R")


def _translated(
    method: Callable[Concatenate[RedisStore, P], R],
) -> Callable[Concatenate[RedisStore, P], R]:
    """Redis's errors as this project's."""

    @wraps(method)
    def call(self: RedisStore, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except redis.AuthenticationError:
            raise ServiceUnavailable(
                f"Redis at {self.address} refused the user or password; check SEGMENTER_REDIS"
            ) from None
        except redis.DataError:
            raise
        except redis.RedisError as error:
            # Redis words a permission that is missing inside a script differently.
            if isinstance(error, redis.exceptions.NoPermissionError) or "executing the script can't" in str(error):
                raise ServiceUnavailable(f"Redis at {self.address} forbids what is needed: {error}") from None
            raise StoreUnavailable(f"Redis at {self.address}: {error}") from None

    return cast("Callable[Concatenate[RedisStore, P], R]", call)


def _pairs(fields: Mapping[str, Any]) -> list[Any]:
    return [len(fields), *(part for pair in fields.items() for part in pair)]


class RedisStore:
    """See StateStore. ``url`` is redis://[user:password@]host:port/db, rediss:// or unix://."""

    def __init__(self, url: str, namespace: str, timeout: float = 3.0) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # A retried commit that had got through is refused as lost, which loads the shard again.
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        )
        options = self._redis.connection_pool.connection_kwargs
        self.address = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self._namespace = namespace
        self._script = self._redis.register_script(scripts.COMMIT)
        self._read = self._redis.register_script(scripts.READ)
        self._activate = self._redis.register_script(scripts.ACTIVATE)
        self._learn = self._redis.register_script(scripts.LEARN)
        self._learned = self._redis.register_script(scripts.LEARNERS)
        self._policy = policy_key(namespace)
        self._clusters = clusters_key(namespace)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    @_translated
    def ping(self) -> None:
        """Raise if Redis cannot be used."""
        self._redis.ping()

    @_translated
    def register(self, partitions: int, group: str) -> None:
        """See StateStore."""
        key = fleet_key(self._namespace)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(key, "partitions", str(partitions))
            pipe.hsetnx(key, "group", group)
            pipe.hmget(key, ["partitions", "group"])
            stored, owner = (part.decode() for part in pipe.execute()[-1])
        if stored != str(partitions):
            raise FleetMismatch(
                f"Redis namespace {self._namespace!r} holds shards of {stored} partitions, the input topics have "
                f"{partitions}; use another SEGMENTER_NAMESPACE to rebuild, or recreate the topics with {stored}"
            )
        if owner != group:
            raise FleetMismatch(
                f"Redis namespace {self._namespace!r} belongs to consumer group {owner!r}, not {group!r}; "
                "give each fleet its own SEGMENTER_NAMESPACE"
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
    def header(self, shard: int) -> ShardHeader:
        """See StateStore."""
        keys = shard_keys(self._namespace, shard)
        parts = cast(list[list[bytes]], self._read(keys=[keys.shard, keys.values, keys.outbox]))
        return codec.decode_header(*(dict(zip(part[::2], part[1::2], strict=True)) for part in parts))

    @_translated
    def acquire(
        self, shard: int, token: str, offsets: Mapping[Role, int], backfill_until: Mapping[Role, int]
    ) -> ShardHeader:
        """See StateStore."""
        keys = shard_keys(self._namespace, shard)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.shard, "owner", token)
            for role, offset in offsets.items():
                pipe.hsetnx(keys.shard, f"offset:{role}", str(offset))
            for role, offset in backfill_until.items():
                pipe.hsetnx(keys.shard, f"backfill:{role}", str(offset))
            pipe.hgetall(keys.shard)
            pipe.hgetall(keys.values)
            pipe.hgetall(keys.outbox)
            return codec.decode_header(*pipe.execute()[-3:])

    def rows(self, shard: int) -> Iterator[list[tuple[str, bytes]]]:
        """See StateStore."""
        cursor = 0
        while True:
            cursor, part = self._scan(shard, cursor)
            yield [(customer.decode(), row) for customer, row in part.items()]
            if not cursor:
                return

    @_translated
    def _scan(self, shard: int, cursor: int) -> tuple[int, dict[bytes, bytes]]:
        customers = shard_keys(self._namespace, shard).customers
        return cast(tuple[int, dict[bytes, bytes]], self._redis.hscan(customers, cursor, count=10_000))

    @_translated
    def row(self, shard: int, customer: str) -> bytes | None:
        """See StateStore."""
        return cast(bytes | None, self._redis.hget(shard_keys(self._namespace, shard).customers, customer))

    @_translated
    def segments(self, shard: int) -> Mapping[str, Count]:
        """See StateStore."""
        stored = cast(dict[bytes, bytes], self._redis.hgetall(shard_keys(self._namespace, shard).segments))
        return {name.decode(): codec.decode_count(count) for name, count in stored.items()}

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
        rows = [part for pair in commit.rows for part in pair]
        args = [
            commit.token,
            commit.number - 1,
            commit.activation,
            *(len(commit.ranges), *ranges),
            *_pairs(fields),
            *(len(commit.rows), *rows),
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
    def acknowledge(self, shard: int, entry_ids: Sequence[str]) -> None:
        """See StateStore."""
        if entry_ids:
            self._redis.hdel(shard_keys(self._namespace, shard).outbox, *entry_ids)
