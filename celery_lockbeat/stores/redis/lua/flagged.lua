-- Tell flags.
-- KEYS[1]  flags (see pause.lua)
-- ARGV     names...
-- Returns  for each its text, or nothing
return redis.call('HMGET', KEYS[1], unpack(ARGV))
