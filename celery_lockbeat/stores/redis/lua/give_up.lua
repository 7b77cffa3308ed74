-- Wait no more for a lock: what is kept for who gives up is given to the next.
-- KEYS[1]  the lock (see lock.lua)
-- ARGV     the ticket of who gives up
-- Returns  {1, or 0 where it has no place, {what is to be told to who is called (line.lua)...}}
-- Atomic:  as in release.lua.
local waits = redis.call('ZREM', line, ARGV[1])
redis.call('HDEL', told, ARGV[1])
local lock, calls = get(KEYS[1]), {}
if is_lock(lock) and is_wide(lock) then
  local time, wide = redis.call('TIME'), wide_key()
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  waits = waits + redis.call('HDEL', wide, '=' .. ARGV[1])
  calls = call_next(wide, now)
  summarize(wide, string.sub(lock, 1, 16), now)
end
return {waits > 0 and 1 or 0, calls}
