-- Pause entries.
-- KEYS[1]  flags: hash, name -> its flag (see flags.lua)
-- KEYS[2]  lapses: sorted set, name by the server ms at which its pause is over
-- KEYS[3]  kept: sorted set, name by the server ms at which a beat has kept it last
-- ARGV     memory ms, until ms or '', what is told, names...
-- Atomic:  a claim sees all of it or nothing.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local texts = redis.call('HMGET', KEYS[1], unpack(ARGV, 4))
local changed, lapses, kept = {}, {}, {}
for i, text in ipairs(texts) do
  local name, flag = ARGV[3 + i], read_flag(text) or {}
  flag.p, flag.u, flag.t = 1, tonumber(ARGV[2]), ARGV[3]
  changed[2 * i - 1], changed[2 * i] = name, cjson.encode(flag)
  lapses[2 * i - 1], lapses[2 * i] = ARGV[2], name
  kept[2 * i - 1], kept[2 * i] = now, name
end
redis.call('HSET', KEYS[1], unpack(changed))
if ARGV[2] == '' then
  redis.call('ZREM', KEYS[2], unpack(ARGV, 4))
else
  redis.call('ZADD', KEYS[2], unpack(lapses))
end
redis.call('ZADD', KEYS[3], 'NX', unpack(kept))
for i = 1, 3 do
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return 1
