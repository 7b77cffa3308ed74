-- End a live lease, and remember its run as finished.
-- KEYS[1]  the lock (see lock.lua)
-- KEYS[2]  the mark of this run as finished, or of all that it is a try of, whose value is the token that finished it;
--          absent where there is nothing to remember. A key of its own doubles what a run leaves behind: it gets one only
--          when the lock's key is used again (acquire.lua), or where release 0.1.0 may look for it
-- ARGV     token, holder, hold ms, remember ms, and the digest by which the lock itself can remember it, or ''
-- Returns  -token when released, now or by an earlier call whose answer was lost, {-token, {what is to be told...}} where somebody is
--          called (line.lua); 0 when the lease was lost before; -1:
--          what is there now is no lock
-- Atomic:  freed and remembered are one fact: a copy of the message must never find the key free and the run unknown.
local lock = get(KEYS[1])
local released = -ARGV[1]
local wide, last = type(lock) == 'string' and is_wide(lock) and wide_key(), lock
if wide then
  lock = redis.call('HGET', wide, '#' .. ARGV[1]) or redis.call('HGET', wide, ARGV[2])
end
-- what begins with this token is a lock; the longer question is left to what does not
if type(lock) ~= 'string' or string.sub(lock, 1, 16) ~= ARGV[1] then
  -- another came after us: was our release carried out before?
  return KEYS[2] and get(KEYS[2]) == ARGV[1] and released or lock and not is_lock(lock) and -1 or 0
end
if string.sub(lock, 30, 30) == ' ' then
  return released
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holder = ARGV[2] .. ' '
if (tonumber(string.sub(lock, 17, 29)) or 0) <= now or string.sub(lock, 30, 29 + #holder) ~= holder then
  return 0
end
-- The token stays, as the counter; without a holder it can be neither extended nor released. Formatting costs as much as a
-- call: the usual release ends the lease at the beginning of time instead.
local remembered = KEYS[2] and ARGV[4] ~= '0'
local inside = remembered and ARGV[5] ~= '' and not wide and string.sub(lock, -2) ~= ' #'
local ended, rest = '0000000000000', '  '
if ARGV[3] ~= '0' then
  -- whoever is refused meanwhile is told who had it
  local run, description = string.match(lock, '^([^ ]*) (.*)$', 30 + #holder)
  ended = string.format('%013.0f', now + ARGV[3])
  rest = ' ' .. run .. (inside and string.format('#%s%.0f ', ARGV[5], now + ARGV[4]) or ' ') .. description
elseif inside then
  ended, rest = string.format('%013.0f', now + ARGV[4] - 1e12), ' #' .. ARGV[5] .. ' '
end
local calls
if wide then
  redis.call('HDEL', wide, ARGV[2])
  redis.call('HSET', wide, '#' .. ARGV[1], ARGV[1] .. ended .. rest)
  calls = call_next(wide, now)
  summarize(wide, string.sub(last, 1, 16), now)
else
  local kept = ARGV[3] + TOKEN_MEMORY
  redis.call('SET', KEYS[1], ARGV[1] .. ended .. rest, 'PX', inside and math.max(kept, ARGV[4]) or kept)
end
if remembered and not inside then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[4])
end
return calls and #calls > 0 and {released, calls} or released
