-- Count no failures in a row any more.
-- KEYS[1]  failures (see failed.lua)
-- ARGV     the name of the flag
-- Returns  1
return redis.call('HDEL', KEYS[1], ARGV[1]) and 1
