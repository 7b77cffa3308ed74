-- Count a run that has failed, and pause its entry after so many in a row.
-- KEYS[1]  flags, KEYS[2] lapses, KEYS[3] kept (see pause.lua)
-- KEYS[4]  failures: hash, the name of a flag -> the runs that have failed in a row, with blanks between them
-- ARGV     memory ms, the name of the flag, run, how many in a row are too many, what is told of the pause
-- Returns  1, if that is what it is paused by, now or by an earlier call whose answer was lost; else 0
-- Atomic:  of several that fail at once one is the last of so many, and a claim sees its pause.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local name, run, limit, told = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local flag = read_flag(redis.call('HGET', KEYS[1], name)) or {}
if flag.p == 1 and (flag.u or math.huge) > now then
  return flag.t == told and 1 or 0
end
local text, runs, known = redis.call('HGET', KEYS[4], name), {}, false
-- what is longer no store has written
for each in string.gmatch(text and #text <= 65536 and text or '', '[^ ]+') do
  runs[#runs + 1] = each
  known = known or each == run
end
if not known then
  runs[#runs + 1] = run
end
if #runs < limit then
  redis.call('HSET', KEYS[4], name, table.concat(runs, ' '))
else
  flag.p, flag.u, flag.t = 1, nil, told
  redis.call('HSET', KEYS[1], name, cjson.encode(flag))
  redis.call('ZREM', KEYS[2], name)
  redis.call('HDEL', KEYS[4], name)
end
redis.call('ZADD', KEYS[3], 'NX', string.format('%.0f', now), name)
for i = 1, 4 do
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return #runs < limit and 0 or 1
