-- Take a key, or say why not.
-- KEYS[1]  the lock: '<token, 16 digits><until, 13 digits, server ms><holder> <run> <description>';
--          the holder is '' once released, the run is '' where there is nothing to remember; neither has a blank.
--          One string, for one SET with its expiry: each call out of Lua costs more than all the cutting here.
-- KEYS[2]  the mark of this run as finished; absent where there is no run
-- KEYS[3]  the mark of the whole that it is a try of; absent where there is none
-- ARGV     holder, run, ttl ms, ttl + token memory ms, description, until when anybody waits for the answer (server ms;
--          '0' for not known)
-- Returns  token, when it is now in microseconds: granted, and the usual case: a lone number is what a client reads fastest;
--          {'granted', now ms, token} with any other token, or {'finished', as a whole (0/1)}, or {'late', now ms}, or
--          {'held', remaining ms, same run (0/1), run, description}
-- Atomic:  the check for the mark, the compare of the holder and the new token must see one state, or two holders
--          could both find the key free. All keys carry the lock key's hash tag, so Cluster runs it on one node.
local found = redis.call('MGET', unpack(KEYS))
if found[2] or found[3] then
  return {'finished', found[3] and 1 or 0}
end
local time = redis.call('TIME')
-- microseconds since the epoch stay below 2^53 until the year 2255: exact in Lua's doubles
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
if now > tonumber(ARGV[6]) and ARGV[6] ~= '0' then
  -- A server that hung carries out what it has been sent meanwhile: a lock that nobody waits for any more would be
  -- nobody's, for a whole ttl.
  return {'late', now}
end
local token = micros
local ours = ARGV[1] .. ' ' .. ARGV[2] .. ' '
local lock = found[1]
if lock then
  local last = tonumber(string.sub(lock, 1, 16))
  local remaining = tonumber(string.sub(lock, 17, 29)) - now
  if remaining <= 0 then
    token = math.max(micros, last + 1)
  elseif string.sub(lock, 30, 29 + #ours) == ours then
    token = last
  else
    local run, description = string.match(lock, '^[^ ]* ([^ ]*) (.*)$', 30)
    return {'held', remaining, run ~= '' and run == ARGV[2] and 1 or 0, run, description}
  end
end
redis.call('SET', KEYS[1], string.format('%016.0f%013.0f', token, now + ARGV[3]) .. ours .. ARGV[5], 'PX', ARGV[4])
return token == micros and token or {'granted', now, token}
