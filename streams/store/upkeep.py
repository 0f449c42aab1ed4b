"""RedisUpkeep: what operators have done to a whole namespace, in Redis. See Upkeep in streams/ports.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import orjson

from models.errors import StateError
from models.population import Summary
from streams.errors import StaleOwner
from streams.store import scripts
from streams.store.keys import fleet_key, shard_keys
from streams.store.redis import RedisStore

#: ARGV: the rebuild's name, the activation that must have been taken. See Upkeep.rewind.
REWIND: Final = """
local key = KEYS[1]
local function number(field, absent) return tonumber(redis.call('HGET', key, field) or absent) end
if redis.call('HGET', key, 'rebuild') == ARGV[1] then return 1 end
local passed, told = true, {}
local found = redis.call('HGETALL', key)
local stored = {}
for i = 1, #found, 2 do stored[found[i]] = found[i + 1] end
for field, value in pairs(stored) do
  local role = string.match(field, '^offset:(.*)$')
  if role then
    local before = stored['silent:' .. role]
    if before and tonumber(before) > tonumber(value) then
      passed = false
      value = before
    end
    told[role] = value
  end
end
local settled = stored['settled'] or stored['time']
if passed and stored['time'] then
  local behind = (stored['commits'] or '0') ~= '0' and number('activation', '0') < tonumber(ARGV[2])
  if settled ~= stored['time'] or behind then return 0 end
end
local function later(field, value)
  if value and (not stored[field] or tonumber(stored[field]) < tonumber(value)) then
    redis.call('HSET', key, field, value)
  end
end
for k = 1, 6 do redis.call('HLEN', KEYS[k]) end
redis.call('HSET', key, 'rebuild', ARGV[1])
for role, offset in pairs(told) do redis.call('HSET', key, 'silent:' .. role, offset, 'offset:' .. role, '0') end
later('silent_until', settled)
later('silent_activation', stored['activation'])
later('silent_summarised', stored['summarised'])
redis.call('HDEL', key, 'owner', 'time', 'settled', 'activation', 'since', 'summarised', 'policy_version')
for field in pairs(stored) do
  if string.sub(field, 1, 7) == 'layout:' then redis.call('HDEL', key, field) end
end
redis.call('DEL', KEYS[2], KEYS[4], KEYS[5], KEYS[6])
return 1
"""

_BEGIN: Final = """
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], 'rebuild', ARGV[1]) end
redis.call('HSETNX', KEYS[1], 'rebuild', ARGV[1])
return redis.call('HGET', KEYS[1], 'rebuild')
"""

_END: Final = """
if redis.call('HGET', KEYS[1], 'rebuild') == ARGV[1] then redis.call('HDEL', KEYS[1], 'rebuild') end
return 1
"""

#: ARGV: the number of partitions to come. Answers what was under way before, and what there is.
_BEGIN_MOVE: Final = """
local before = redis.call('HGET', KEYS[1], 'repartition')
if not before then redis.call('HDEL', KEYS[1], 'drained') end
redis.call('HSETNX', KEYS[1], 'repartition', ARGV[1])
return {before, redis.call('HGET', KEYS[1], 'drained')}
"""

_DRAINED: Final = """
if redis.call('HEXISTS', KEYS[1], 'repartition') == 1 then redis.call('HSET', KEYS[1], 'drained', '1') end
return 1
"""

#: ARGV: the number of partitions there are now, and the lineage.
_END_MOVE: Final = """
if redis.call('HGET', KEYS[1], 'repartition') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'partitions', ARGV[1], 'lineage', ARGV[2])
redis.call('HDEL', KEYS[1], 'repartition', 'drained')
return 1
"""

#: What comes first in each of the following: KEYS are a shard's, ARGV[1] is the token of who moves customers.
_MINE: Final = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 'stale' end
"""

#: KEYS: of the shard that customers leave. ARGV[2]: the lineage. Its sizes are counted again when it is loaded.
_LEAVE: Final = f"""{_MINE}
redis.call('HSET', KEYS[1], 'lineage', ARGV[2])
redis.call('DEL', KEYS[4])
return 'ok'
"""

#: KEYS: of the shard that customers come to. ARGV, from the second on: how many fields and values follow of its header,
#: these, and so on for its dictionary and its summaries.
_COME: Final = f"""{_MINE}
local at = 2
for _, k in ipairs({{1, 5, 6}}) do
  local size = tonumber(ARGV[at])
  for i = at + 1, at + size, 4000 do
    redis.call('HSET', KEYS[k], unpack(ARGV, i, math.min(i + 3999, at + size)))
  end
  at = at + size + 1
end
redis.call('DEL', KEYS[4])
return 'ok'
"""

_PUT: Final = f"""{_MINE}
for i = 2, #ARGV, 4000 do redis.call('HSET', KEYS[2], unpack(ARGV, i, math.min(i + 3999, #ARGV))) end
return 'ok'
"""

_REMOVE: Final = f"""{_MINE}
for i = 2, #ARGV, 4000 do redis.call('HDEL', KEYS[2], unpack(ARGV, i, math.min(i + 3999, #ARGV))) end
return 'ok'
"""

#: Fields of a shard's header that its customers take along.
_CARRIED: Final = (
    b"commits", b"time", b"settled", b"activation", b"since", b"summarised", b"policy_version",
    b"rebuild", b"silent_until", b"silent_activation", b"silent_summarised",
)  # fmt: skip
#: Customers removed in one step.
_AT_ONCE: Final = 10_000

_FIELD: Final = "return redis.call('HGET', KEYS[1], ARGV[1])"


class RedisUpkeep(RedisStore):
    """See Upkeep."""

    def begin_rebuild(self, name: str, *, again: bool = False) -> str:
        """See Upkeep."""
        return cast(bytes, self.run(_BEGIN, [fleet_key(self._namespace)], [name, int(again)])).decode()

    def end_rebuild(self, name: str) -> None:
        """See Upkeep."""
        self.run(_END, [fleet_key(self._namespace)], [name])

    def rewind(self, shard: int, rebuild: str, policy: int) -> bool:
        """See Upkeep."""
        return bool(self.run(REWIND, list(shard_keys(self._namespace, shard)), [rebuild, policy]))

    def require_own(self, cluster: str, group: str = "") -> None:
        """Raise FleetMismatch if the namespace was filled from another Kafka cluster, or for another group."""
        key = fleet_key(self._namespace)
        kafka, owner = ((self.run(_FIELD, [key], [field]) or b"").decode() for field in ("cluster", "group"))
        self._require_own(owner, group, kafka, cluster)

    def lineage(self) -> list[dict[str, Any]]:
        """The repartitions of this namespace, from the first on: docs/STATE.md. Raises StoreUnavailable, StateError."""
        stored = cast(bytes | None, self.run(_FIELD, [fleet_key(self._namespace)], ["lineage"]))
        try:
            found: list[dict[str, Any]] = orjson.loads(stored or b"[]")
        except orjson.JSONDecodeError:
            raise StateError(f"the field lineage of {fleet_key(self._namespace)} is damaged; restore Redis") from None
        return found

    def repartitioning(self) -> int | None:
        """The number of partitions that an unfinished repartition leads to."""
        stored = cast(bytes | None, self.run(_FIELD, [fleet_key(self._namespace)], ["repartition"]))
        return None if stored is None else int(stored)

    def begin_repartition(self, partitions: int) -> tuple[int | None, bool]:
        """Let no worker start. Returns the number of an unfinished repartition, and whether it has drained all shards.

        What is begun here is a repartition to ``partitions`` only if there was none.
        """
        before, drained = cast(list[bytes | None], self.run(_BEGIN_MOVE, [fleet_key(self._namespace)], [partitions]))
        return None if before is None else int(before), drained is not None

    def drained(self) -> None:
        """Say that every shard has everything that was sent to it: from now on customers are moved."""
        self.run(_DRAINED, [fleet_key(self._namespace)])

    def end_repartition(self, partitions: int, lineage: list[dict[str, Any]]) -> None:
        """Let workers start, with so many shards."""
        self.run(_END_MOVE, [fleet_key(self._namespace)], [partitions, orjson.dumps(lineage)])

    def let_go(self, shard: int) -> None:
        """Refuse whoever owned the shard."""
        self.run("return redis.call('HDEL', KEYS[1], 'owner')", [shard_keys(self._namespace, shard).shard])

    def claim(self, shard: int, token: str) -> None:
        """See Upkeep."""
        self.run("return redis.call('HSET', KEYS[1], 'owner', ARGV[1])", shard_keys(self._namespace, shard), [token])

    def _moved(self, shard: int, script: str, token: str, args: Sequence[Any]) -> None:
        if self.run(script, shard_keys(self._namespace, shard), [token, *args]) == b"stale":
            raise StaleOwner(
                f"shard {shard} has another owner: another `segmenter repartition` has begun; run it again"
            )

    def spread(self, source: int, shards: Sequence[int], lineage: str, token: str) -> None:
        """See Upkeep."""
        keys = shard_keys(self._namespace, source)
        header, values, population = cast(
            list[list[bytes]], self.run(scripts.READ, [keys.shard, keys.values, keys.population])
        )
        fields = dict(zip(header[::2], header[1::2], strict=True))
        kept = {
            name: value
            for name, value in fields.items()
            if name in _CARRIED or name.startswith((b"layout:", b"offset:"))
        }
        start = {name: b"0" if name.startswith(b"offset:") else value for name, value in kept.items()}
        # What the shard has said of an instant, it has said of all its customers, wherever they are now.
        nobody = Summary.empty().json
        summaries: list[bytes] = []
        for instant, summary in zip(population[::2], population[1::2], strict=True):
            summaries += [instant, summary if instant == b"first" else nobody]
        head = [part for pair in {**start, b"lineage": lineage.encode()}.items() for part in pair]
        for shard in shards:
            self._moved(shard, _COME, token, [len(head), *head, len(values), *values, len(summaries), *summaries])
        self._moved(source, _LEAVE, token, [lineage])

    def put_rows(self, shard: int, rows: Sequence[tuple[str, bytes]], token: str) -> None:
        """See Upkeep."""
        self._moved(shard, _PUT, token, [part for pair in rows for part in pair])

    def remove_rows(self, shard: int, customers: Sequence[str], token: str) -> None:
        """See Upkeep."""
        for start in range(0, len(customers), _AT_ONCE):
            self._moved(shard, _REMOVE, token, customers[start : start + _AT_ONCE])
