-- Cancel requests.
-- KEYS[1]  requests (see ask.lua)
-- ARGV     names...
-- Returns  for each 1, or 0: it is not there
-- Atomic:  the rest of a request stays as it is.
local cancelled = {}
for i, text in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV))) do
  cancelled[i] = 0
  if text then
    redis.call('HSET', KEYS[1], ARGV[i], '1' .. string.sub(text, 2))
    cancelled[i] = 1
  end
end
return cancelled
