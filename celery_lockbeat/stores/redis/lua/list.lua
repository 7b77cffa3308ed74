-- Change what a replica lists, and tell the states of what it adds.
-- KEYS[1]  entries: hash, entry -> its state (see state.lua)
-- KEYS[2]  unlisted: sorted set, entry by the server ms since when no replica has listed it
-- KEYS[3]  replicas, KEYS[4] listing, KEYS[5] names of this replica (see join.lua)
-- KEYS[6]  claims, KEYS[7] pending, KEYS[8] cold start: only to keep them
-- ARGV     replica, memory ms, complete (0/1), prefix of the keys of names, count of the removed, the removed...,
--          then (entry, total run count, last_run_at)...
-- Returns  {{the state of each one added}, {entry, the beginning of what is no state of it, ...}}
-- Atomic:  of two replicas that list a new entry, both get the state that the first one gave.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local removed = tonumber(ARGV[5])
redis.call('ZADD', KEYS[3], now, ARGV[1])
if removed > 0 then
  -- whoever has not listed all yet may list it, and whoever is gone is looked after in claim.lua
  local replicas = redis.call('SCARD', KEYS[4]) == 0 and redis.call('ZRANGE', KEYS[3], 0, -1)
  for i = 6, 5 + removed do
    redis.call('SREM', KEYS[5], ARGV[i])
    local listed = not replicas
    for _, id in ipairs(replicas or {}) do
      listed = listed or redis.call('SISMEMBER', ARGV[4] .. id, ARGV[i]) == 1
    end
    if not listed then
      redis.call('ZADD', KEYS[2], 'NX', now, ARGV[i])
    end
  end
end
local names = {}
for i = 6 + removed, #ARGV, 3 do
  names[#names + 1] = ARGV[i]
end
local states, unreadable = {}, {}
if #names > 0 then
  redis.call('SADD', KEYS[5], unpack(names))
  states = redis.call('HMGET', KEYS[1], unpack(names))
  local unlisted = redis.call('ZMSCORE', KEYS[2], unpack(names))
  local changed = {}
  for i, name in ipairs(names) do
    local given = 3 + removed + 3 * i
    local state = states[i]
    local count, pending = read_state(state or '')
    if state and not count then
      unreadable[#unreadable + 1], unreadable[#unreadable + 2] = name, string.sub(state, 1, 64)
    end
    if not count then
      states[i] = ARGV[given + 1] .. ' 0 ' .. ARGV[given + 2]
    elseif unlisted[i] then
      states[i] = count .. ' ' .. pending .. ' ' .. ARGV[given + 2]
      redis.call('ZREM', KEYS[2], name)
    end
    changed[2 * i - 1], changed[2 * i] = name, states[i]
  end
  redis.call('HSET', KEYS[1], unpack(changed))
end
if ARGV[3] == '1' then
  redis.call('SREM', KEYS[4], ARGV[1])
end
for i = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
return {states, unreadable}
