-- Let a live lease end `ttl` from now.
-- KEYS[1]  the lock (see lock.lua)
-- ARGV     token, holder, ttl ms
-- Returns  1, or, where one waits to replace this holder, what that one says of itself; or 0 when this lease is lost: run out, released, or followed by another; -1: by what is no lock
-- Atomic:  between a separate compare and the write another holder could come in, and its lease would be extended.
local lock = get(KEYS[1])
if lock and not is_lock(lock) then
  return -1
end
local wide, last = is_wide(lock) and wide_key(), lock and string.sub(lock, 1, 16)
if wide then
  lock = redis.call('HGET', wide, ARGV[2])
end
local holder = ARGV[2] .. ' '
if not lock or string.sub(lock, 1, 16) ~= ARGV[1] or string.sub(lock, 30, 29 + #holder) ~= holder then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(string.sub(lock, 17, 29)) <= now then
  return 0
end
local extended = ARGV[1] .. string.format('%013.0f', now + ARGV[3]) .. string.sub(lock, 30)
if wide then
  redis.call('HSET', wide, ARGV[2], extended)
  summarize(wide, last, now)
  return replaced_by(wide, ARGV[1], now) or 1
else
  redis.call('SET', KEYS[1], extended, 'PX', ARGV[3] + TOKEN_MEMORY)
end
return 1
