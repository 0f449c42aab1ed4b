"""RedisUpkeep: what operators have done to a whole namespace, in Redis. See Upkeep in streams/ports.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import orjson

from models.errors import StateError
from models.population import Summary
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
redis.call('HSETNX', KEYS[1], 'repartition', ARGV[1])
return {before, redis.call('HGET', KEYS[1], 'drained')}
"""

#: ARGV: the number of partitions there are now, and the lineage.
_END_MOVE: Final = """
redis.call('HSET', KEYS[1], 'partitions', ARGV[1], 'lineage', ARGV[2])
redis.call('HDEL', KEYS[1], 'repartition', 'drained')
return 1
"""

#: KEYS: of the shard that customers leave. ARGV: the lineage. Its sizes are counted again when it is loaded.
_LEAVE: Final = """
redis.call('HSET', KEYS[1], 'lineage', ARGV[1])
redis.call('HDEL', KEYS[1], 'owner')
redis.call('DEL', KEYS[4])
return 1
"""

#: KEYS: of the shard that customers come to. ARGV: how many fields and values follow of its header, these, and so on
#: for its dictionary and its summaries.
_COME: Final = """
local at = 1
for _, k in ipairs({1, 5, 6}) do
  local size = tonumber(ARGV[at])
  for i = at + 1, at + size, 4000 do
    redis.call('HSET', KEYS[k], unpack(ARGV, i, math.min(i + 3999, at + size)))
  end
  at = at + size + 1
end
redis.call('DEL', KEYS[4])
return 1
"""

_PUT: Final = """
for i = 1, #ARGV, 4000 do redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 3999, #ARGV))) end
return 1
"""

_REMOVE: Final = """
for i = 1, #ARGV, 4000 do redis.call('HDEL', KEYS[1], unpack(ARGV, i, math.min(i + 3999, #ARGV))) end
return 1
"""

#: Fields of a shard's header that its customers take along.
_CARRIED: Final = (
    b"commits", b"time", b"settled", b"activation", b"since", b"summarised", b"policy_version",
)  # fmt: skip

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

    def lineage(self) -> list[dict[str, Any]]:
        """The repartitions of this namespace, from the first on: docs/STATE.md. Raises StoreUnavailable, StateError."""
        stored = cast(bytes | None, self.run(_FIELD, [fleet_key(self._namespace)], ["lineage"]))
        try:
            found: list[dict[str, Any]] = orjson.loads(stored or b"[]")
        except orjson.JSONDecodeError:
            raise StateError(f"the field lineage of {fleet_key(self._namespace)} is damaged; restore Redis") from None
        return found

    def begin_repartition(self, partitions: int) -> tuple[int | None, bool]:
        """Let no worker start. Returns the number of an unfinished repartition, and whether it has drained all shards.

        What is begun here is a repartition to ``partitions`` only if there was none.
        """
        before, drained = cast(list[bytes | None], self.run(_BEGIN_MOVE, [fleet_key(self._namespace)], [partitions]))
        return None if before is None else int(before), drained is not None

    def drained(self) -> None:
        """Say that every shard has everything that was sent to it: from now on customers are moved."""
        self.run("return redis.call('HSET', KEYS[1], 'drained', '1')", [fleet_key(self._namespace)])

    def end_repartition(self, partitions: int, lineage: list[dict[str, Any]]) -> None:
        """Let workers start, with so many shards."""
        self.run(_END_MOVE, [fleet_key(self._namespace)], [partitions, orjson.dumps(lineage)])

    def let_go(self, shard: int) -> None:
        """Refuse whoever owned the shard."""
        self.run("return redis.call('HDEL', KEYS[1], 'owner')", [shard_keys(self._namespace, shard).shard])

    def spread(self, source: int, shards: Sequence[int], lineage: str) -> None:
        """Give new shards what they need of the shard from which their customers come, but for the customers."""
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
            args = [len(head), *head, len(values), *values, len(summaries), *summaries]
            self.run(_COME, list(shard_keys(self._namespace, shard)), args)
        self.run(_LEAVE, list(keys), [lineage])

    def put_rows(self, shard: int, rows: Sequence[tuple[str, bytes]]) -> None:
        """Write packed rows."""
        self.run(_PUT, [shard_keys(self._namespace, shard).customers], [part for pair in rows for part in pair])

    def remove_rows(self, shard: int, customers: Sequence[str]) -> None:
        """Remove rows."""
        self.run(_REMOVE, [shard_keys(self._namespace, shard).customers], list(customers))
