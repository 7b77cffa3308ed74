-- Ask for ticks.
-- KEYS[1]  requests: hash, name -> '<cancelled 0/1> <passed> <length of the flag's name, of first, of last> <the three><text>'
-- KEYS[2]  queue: sorted set, name by the server ms at which it was asked for
-- ARGV     memory ms, name, request
-- Atomic:  what is queued is there.
local time = redis.call('TIME')
redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[2], 'NX', time[1] * 1000 + math.floor(time[2] / 1000), ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return 1
