-- Look after a line: give what is free to those who are first, though nobody has freed it.
-- KEYS[1]  the lock (see lock.lua)
-- Returns  {ms until the first lease of a holder, or of who is called, ends; how many wait; {what is to be told...}}; 0 and 0: nobody waits
-- Atomic:  as in release.lua.
local lock = get(KEYS[1])
if not is_lock(lock) or not is_wide(lock) then
  return {0, 0, {}}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local wide = wide_key()
local calls, soonest = call_next(wide, now), nil
summarize(wide, string.sub(lock, 1, 16), now)
local all = redis.call('HGETALL', wide)
for i = 2, #all, 2 do
  local left = ends(all[i]) - now
  soonest = left > 0 and math.min(soonest or left, left) or soonest
end
return {soonest or 0, redis.call('ZCARD', line), calls}
