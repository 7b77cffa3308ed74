-- Keep flags, and drop those that nobody has kept for long, or that say nothing any more.
-- KEYS[1]  flags, KEYS[2] lapses, KEYS[3] kept (see pause.lua), KEYS[4] failures (see failed.lua)
-- ARGV     memory ms of a flag that no beat keeps, memory ms where no beat is there, names...
-- Returns  1
-- Atomic:  a flag that is set just now is kept.
if redis.call('EXISTS', KEYS[3]) == 0 then
  return 1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = {}
for i = 3, #ARGV do
  kept[#kept + 1], kept[#kept + 2] = string.format('%.0f', now), ARGV[i]
end
if #kept > 0 then
  redis.call('ZADD', KEYS[3], 'XX', unpack(kept))
end
local gone = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - ARGV[1]), 'LIMIT', 0, 500)
if #gone > 0 then
  redis.call('HDEL', KEYS[4], unpack(gone))
end
local found = #ARGV > 2 and redis.call('HMGET', KEYS[1], unpack(ARGV, 3)) or {}
for i, text in ipairs(found) do
  local flag = text and read_flag(text)
  if text and not (flag and (flag.p == 1 or flag.s)) then
    redis.call('HDEL', KEYS[1], ARGV[2 + i])
    redis.call('ZREM', KEYS[2], ARGV[2 + i])
    if not redis.call('HGET', KEYS[4], ARGV[2 + i]) then
      gone[#gone + 1] = ARGV[2 + i]
    end
  end
end
if #gone > 0 then
  redis.call('HDEL', KEYS[1], unpack(gone))
  redis.call('ZREM', KEYS[2], unpack(gone))
  redis.call('ZREM', KEYS[3], unpack(gone))
end
for i = 1, 4 do
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
return 1
