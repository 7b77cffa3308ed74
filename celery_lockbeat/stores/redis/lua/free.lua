-- End whatever live lease a holder has, without its token: for a holder that is dead, or never learned what it was granted.
-- KEYS[1]  the lock (see lock.lua)
-- ARGV     holder
-- Returns  1, or {1, {what is to be told to who is called (line.lua)...}}, or 0 when this holder has no live lease
-- Atomic:  as in release.lua: between a separate compare and the write the key could become another's.
local lock = get(KEYS[1])
local readable, last = is_lock(lock), lock
local wide = readable and is_wide(lock) and wide_key()
if wide then
  lock = redis.call('HGET', wide, ARGV[1])
end
local holder = ARGV[1] .. ' '
if not readable or not lock or string.sub(lock, 30, 29 + #holder) ~= holder then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(string.sub(lock, 17, 29)) <= now then
  return 0
end
local token = string.sub(lock, 1, 16)
local freed = token .. string.format('%013.0f', now) .. string.sub(lock, 30 + #ARGV[1])
if wide then
  redis.call('HDEL', wide, ARGV[1])
  redis.call('HSET', wide, '#' .. token, freed)
  local calls = call_next(wide, now)
  summarize(wide, string.sub(last, 1, 16), now)
  return {1, calls}
else
  redis.call('SET', KEYS[1], freed, 'PX', TOKEN_MEMORY)
end
return 1
