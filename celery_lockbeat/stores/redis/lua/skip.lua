-- Let the next ticks of entries be passed over.
-- KEYS[1]  flags, KEYS[2] kept (see pause.lua)
-- ARGV     memory ms, how many ticks, what is told, names...
-- Atomic:  a claim sees all of it or nothing.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local changed, kept = {}, {}
for i, text in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV, 4))) do
  local flag, count = read_flag(text) or {}, tonumber(ARGV[2])
  flag.s, flag.k = count > 0 and count or nil, count > 0 and ARGV[3] or nil
  changed[2 * i - 1], changed[2 * i] = ARGV[3 + i], cjson.encode(flag)
  kept[2 * i - 1], kept[2 * i] = now, ARGV[3 + i]
end
redis.call('HSET', KEYS[1], unpack(changed))
redis.call('ZADD', KEYS[2], 'NX', unpack(kept))
for i = 1, 2 do
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return 1
