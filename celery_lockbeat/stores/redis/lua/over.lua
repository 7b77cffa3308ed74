-- Forget requests that are fulfilled, but not yet what has been claimed of them: who asks late must not claim it again.
-- KEYS[1]  requests, KEYS[2] queue (see ask.lua), KEYS[3] unlisted (see list.lua)
-- ARGV     memory ms, what their keys begin with among the entries, names...
-- Atomic:  what is forgotten is not told any more.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HDEL', KEYS[1], unpack(ARGV, 3))
redis.call('ZREM', KEYS[2], unpack(ARGV, 3))
for i = 3, #ARGV do
  redis.call('ZADD', KEYS[3], 'NX', now, ARGV[2] .. ARGV[i])
end
redis.call('PEXPIRE', KEYS[3], ARGV[1])
return 1
