-- End whatever live lease a holder has, without its token: for a holder that is dead, or never learned what it was granted.
-- KEYS[1]  the lock (see lock.lua)
-- ARGV     holder
-- Returns  1, or 0 when this holder has no live lease
-- Atomic:  as in release.lua: between a separate compare and the write the key could become another's.
local lock = get(KEYS[1])
local holder = ARGV[1] .. ' '
if not is_lock(lock) or string.sub(lock, 30, 29 + #holder) ~= holder then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(string.sub(lock, 17, 29)) <= now then
  return 0
end
redis.call('SET', KEYS[1], string.sub(lock, 1, 16) .. string.format('%013.0f', now) .. string.sub(lock, 30 + #ARGV[1]),
  'PX', TOKEN_MEMORY)
return 1
