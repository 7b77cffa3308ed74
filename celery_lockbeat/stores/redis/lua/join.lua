-- Count a beat replica in.
-- KEYS[1]  replicas: sorted set, replica by the server ms at which it was last heard of; 0: it has left
-- KEYS[2]  listing: set of the replicas whose list is not complete yet
-- KEYS[3]  cold start: server ms
-- KEYS[4]  names: set of the entries that this replica lists
-- ARGV     replica, alive ms, memory ms, cold start ms of its earlier joining or ''
-- Returns  {cold start ms, now ms}; the former is -1 where the others know it, and what is stored of it is no such time
-- Atomic:  of two replicas that come at once, one starts cold and the other joins it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local replica, alive, memory = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local others = redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now - alive), '+inf')
local stored = get(KEYS[3])
local cold = type(stored) == 'string' and #stored <= 15 and string.match(stored, '^%d+$')
if ARGV[4] ~= '' then
  cold = cold or ARGV[4]
elseif others == 0 or not stored then
  cold = string.format('%.0f', now)
elseif not cold then
  -- A new one would fire again what has been fired since. The others know it, and fire all else meanwhile.
  return {-1, now}
end
redis.call('SET', KEYS[3], cold, 'PX', memory)
redis.call('ZADD', KEYS[1], now, replica)
redis.call('SADD', KEYS[2], replica)
redis.call('DEL', KEYS[4])
redis.call('PEXPIRE', KEYS[1], memory)
redis.call('PEXPIRE', KEYS[2], memory)
return {tonumber(cold), now}
