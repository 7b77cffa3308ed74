-- Write records into an app's journal, and drop the oldest.
-- KEYS[1]  journal: stream; a record's fields are r, its text, and, where its id is not by the clock, t, the server's ms
-- KEYS[2]  batches: sorted set, the name of a batch by the server ms until which it is remembered
-- ARGV     batch, an earlier one to forget, remember ms, how many records to keep, memory ms, then texts...
-- Returns  1, or 0 where this batch has been written before
-- Atomic:  a batch is written once, and whole.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text_of(number)
  return string.format('%.0f', number)
end
-- first, for a key of another type is an error, and what a script has written before it stays
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text_of(now))
redis.call('ZREM', KEYS[2], ARGV[2])
if redis.call('ZADD', KEYS[2], 'NX', text_of(now + tonumber(ARGV[3])), ARGV[1]) == 0 then
  return 0
end
-- an end that no store has written may be more than PEXPIRE takes
local newest = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
redis.call('PEXPIRE', KEYS[2], text_of(math.max(1, math.min(tonumber(newest[2]) - now, 1e12))))
if #ARGV > 5 then
  -- where the clock was set back, ids go on from the last one
  local ahead = last and tonumber(string.match(last[1], '^%d+')) > now
  for i = 6, #ARGV do
    if ahead then
      redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'r', ARGV[i], 't', text_of(now))
    else
      redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'r', ARGV[i])
    end
  end
  redis.call('XTRIM', KEYS[1], 'MINID', '~', text_of(math.max(0, now - tonumber(ARGV[5]))))
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return 1
