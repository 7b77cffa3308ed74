-- Let the other members of an app know something, and forget what was to be known until now.
-- KEYS[1]  announced: hash, name -> '<first ms> <last ms> <until ms> <text>'
-- KEYS[2]  until: sorted set, name by the server ms until which it is known
-- ARGV     ttl ms, then (name, text)...
-- Returns  1
-- Atomic:  of two members that announce the same for the first time one is the first.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local till, names = string.format('%.0f', now + tonumber(ARGV[1])), {}
for i = 2, #ARGV, 2 do
  names[#names + 1] = ARGV[i]
end
if #names > 0 then
  local known, changed, ends = redis.call('HMGET', KEYS[1], unpack(names)), {}, {}
  for i, name in ipairs(names) do
    local first, last_end = string.match(known[i] or '', '^(%d+) %d+ (%d+) ')
    if not first or #first > 15 or tonumber(last_end) <= now then
      first = string.format('%.0f', now)
    end
    changed[2 * i - 1] = name
    changed[2 * i] = first .. ' ' .. string.format('%.0f', now) .. ' ' .. till .. ' ' .. ARGV[1 + 2 * i]
    ends[2 * i - 1], ends[2 * i] = till, name
  end
  redis.call('HSET', KEYS[1], unpack(changed))
  redis.call('ZADD', KEYS[2], unpack(ends))
end
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, 1000)
if #over > 0 then
  redis.call('HDEL', KEYS[1], unpack(over))
  redis.call('ZREM', KEYS[2], unpack(over))
end
-- where nobody comes any more, nothing is left behind
local newest = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
if newest[2] then
  -- an end that no store has written may be more than PEXPIRE takes
  local rest = string.format('%.0f', math.min(tonumber(newest[2]) - now, 1e12))
  redis.call('PEXPIRE', KEYS[1], rest)
  redis.call('PEXPIRE', KEYS[2], rest)
end
return 1
