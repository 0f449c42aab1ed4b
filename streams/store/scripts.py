"""The Lua scripts that RedisStore runs; each is one step that happens as a whole."""

from __future__ import annotations

from typing import Final

#: Everything is checked before the first write: scripts are isolated, but not rolled back.
#: ARGV: the token, the number of commits before this one, the activation, then lists, each preceded by its length:
#: ranges (role, start, end); fields and values of the six hashes in the order of KEYS; erased customers. Last, the
#: instants of the shard's first summary and of the last one to forget, each empty if there is none.
COMMIT: Final = """
local at = 1
local function next_list(width)
  local first = at + 1
  at = at + tonumber(ARGV[at]) * width + 1
  return first, at - 1
end
local function write(key, first, last)
  for i = first, last, 4000 do
    redis.call('HSET', key, unpack(ARGV, i, math.min(i + 3999, last)))
  end
end
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 'stale' end
if tonumber(redis.call('HGET', KEYS[1], 'activation') or '0') > tonumber(ARGV[3]) then return 'stale' end
local commits = redis.call('HGET', KEYS[1], 'commits') or '0'
if commits ~= ARGV[2] then return 'lost commit ' .. commits end
at = 4
local first, last = next_list(3)
for i = first, last, 3 do
  local stored = redis.call('HGET', KEYS[1], 'offset:' .. ARGV[i])
  if stored ~= ARGV[i + 1] then return 'lost ' .. ARGV[i] .. ' ' .. (stored or 'nothing') end
end
-- A key of another type, a missing permission or a lack of memory must show before the first write. HSET comes first:
-- once a script has written, Redis lets it write on above maxmemory.
for k = 1, 6 do redis.call('HLEN', KEYS[k]) end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('HDEL', KEYS[2], '')
redis.call('DEL', KEYS[4])
for i = first, last, 3 do redis.call('HSET', KEYS[1], 'offset:' .. ARGV[i], ARGV[i + 2]) end
for k = 1, 6 do
  first, last = next_list(2)
  local key = KEYS[k]
  write(key, first, last)
end
first, last = next_list(1)
for i = first, last, 4000 do
  redis.call('HDEL', KEYS[2], unpack(ARGV, i, math.min(i + 3999, last)))
end
if ARGV[at] ~= '' then redis.call('HSETNX', KEYS[6], 'first', ARGV[at]) end
if ARGV[at + 1] ~= '' then
  for _, instant in ipairs(redis.call('HKEYS', KEYS[6])) do
    if instant ~= 'first' and tonumber(instant) <= tonumber(ARGV[at + 1]) then
      redis.call('HDEL', KEYS[6], instant)
    end
  end
end
return 'ok'
"""

#: Appends an activation if its number is the next. ARGV: the latest before it, then fields and values.
ACTIVATE: Final = """
if (redis.call('HGET', KEYS[1], 'latest') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
"""

#: ARGV: the offset before, empty if there is none; how many fields and values follow of what is replaced, these, and
#: then those of what is written once.
LEARN: Final = """
local stored = redis.call('HGET', KEYS[1], 'offset')
if (stored or '') ~= ARGV[1] then return 'lost ' .. (stored or 'nothing') end
local fields, replaced = {}, 2 + tonumber(ARGV[2])
for i = 3, #ARGV, 2 do
  if i <= replaced or redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
    table.insert(fields, ARGV[i])
    table.insert(fields, ARGV[i + 1])
  end
end
for i = 1, #fields, 4000 do redis.call('HSET', KEYS[1], unpack(fields, i, math.min(i + 3999, #fields))) end
return 'ok'
"""

#: The next offset of the samples topic, then each learner's dimension and state.
LEARNERS: Final = """
local found = {redis.call('HGET', KEYS[1], 'offset')}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 8) == 'learner:' then
    table.insert(found, string.sub(field, 9))
    table.insert(found, redis.call('HGET', KEYS[1], field))
  end
end
return found
"""

#: A script, because a transaction may not even read when Redis is out of memory.
READ: Final = """
local parts = {}
for k = 1, #KEYS do parts[k] = redis.call('HGETALL', KEYS[k]) end
return parts
"""

#: ARGV: fields and values, each of which is written if it is not there yet.
REGISTER: Final = """
for i = 1, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
return redis.call('HMGET', KEYS[1], 'partitions', 'group', 'cluster', 'repartition')
"""

#: ARGV: the token, then fields and values of KEYS[1], each of which is written if it is not there yet.
#: A key of another type or a missing permission must show before the first write.
ACQUIRE: Final = """
redis.call('HGETALL', KEYS[1])
for k = 2, #KEYS do redis.call('HLEN', KEYS[k]) end
redis.call('HSETNX', KEYS[1], 'owner', ARGV[1])
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
for i = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
local parts = {}
for k = 1, #KEYS do parts[k] = redis.call('HGETALL', KEYS[k]) end
return parts
"""

#: One moment of a shard: shard, values, outbox, segments, then a part of the customers and where the next part begins.
#: ARGV: a cursor and about how many; or an empty text and the customers wanted.
MOMENT: Final = """
local parts = {}
for k = 1, 4 do parts[k] = redis.call('HGETALL', KEYS[k]) end
if ARGV[1] ~= '' then
  local found = redis.call('HSCAN', KEYS[5], ARGV[1], 'COUNT', ARGV[2])
  parts[5], parts[6] = found[1], found[2]
else
  parts[5], parts[6] = '0', {}
  for i = 2, #ARGV do
    local row = redis.call('HGET', KEYS[5], ARGV[i])
    if row then
      table.insert(parts[6], ARGV[i])
      table.insert(parts[6], row)
    end
  end
end
return parts
"""
