-- Take a key, or say why not.
-- KEYS[1]  the lock (see lock.lua)
-- KEYS[2]  the mark of this run as finished (see release.lua); absent where there is no run
-- KEYS[3]  the mark of the whole that it is a try of; absent where there is none
--          It may write one more, with their hash tag: the mark of what was remembered in the lock.
-- ARGV     '<holder> <run> <description>', ttl ms, until when anybody waits for the answer (server ms; '0' for not known),
--          what is put behind the description of a key that has been used before, and how many may hold the key at a time,
--          and, from who would wait in line, what is known of it (line.lua), in JSON
-- Returns  token, when it is now in microseconds: granted, and the usual case: a lone number is what a client reads fastest;
--          {'granted', now ms, token} with any other token, or {'finished', as a whole (0/1), the token that finished it, if that is at hand,
--          and who has superseded it}, or {'late', now ms}, or
--          {'held', remaining ms, same run (0/1), run, description}, or {'unreadable', key, its type, the beginning of its value}
-- Atomic:  the check for the marks, the compare of the holder and the new token must see one state, or two holders
--          could both find the key free. All keys carry the lock key's hash tag, so Cluster runs it on one node.
local function unreadable(key, value)
  return {'unreadable', key, redis.call('TYPE', key).ok, type(value) == 'string' and string.sub(value, 1, 64) or ''}
end
local time = redis.call('TIME')
-- microseconds since the epoch stay below 2^53 until the year 2255: exact in Lua's doubles
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
-- One call tells the usual: there is nothing, but for a lock that was released.
local there = redis.call('EXISTS', unpack(KEYS))
local lock = there > 0 and get(KEYS[1])
local readable = not lock or is_lock(lock)
-- what is remembered in the lock itself, and until when
local mark, forgotten
if lock and readable and string.sub(lock, 30, 30) == ' ' and string.find(lock, '#', 31, true) then
  mark = string.match(lock, '^ [^ #]*#([%w_-]+) ', 30)
  if mark then
    mark, forgotten = string.sub(mark, 1, 12), tonumber(string.sub(mark, 13)) or tonumber(string.sub(lock, 17, 29)) + 1e12
    mark = forgotten > now and mark
  end
end
local more = there > (lock and 1 or 0)
if mark or more then
  for i = #KEYS, 2, -1 do
    if mark and string.sub(KEYS[i], -13) == ':' .. mark then
      return {'finished', i - 2}
    end
    local beside = more and get(KEYS[i])
    if beside then
      local known = type(beside) == 'string' and #beside == 16 and string.find(beside, '^%d+$')
      if not known then
        return unreadable(KEYS[i], beside)
      end
      local who = tonumber(beside) == 1 and get(superseded_by(string.match(KEYS[i], '}:(.*)$')))
      return {'finished', i - 2, tonumber(beside), type(who) == 'string' and who or nil}
    end
  end
end
if not readable then
  return unreadable(KEYS[1], lock)
end
if now > tonumber(ARGV[3]) and ARGV[3] ~= '0' then
  -- A server that hung carries out what it has been sent meanwhile: a lock that nobody waits for any more would be
  -- nobody's, for a whole ttl.
  return {'late', now}
end
local function keep_mark()
  if mark then
    -- The key is used again: from now on the run before is remembered beside it.
    local tag = string.find(KEYS[1], '{', 1, true)
    local key = string.sub(KEYS[1], 1, tag - 6) .. 'done:' .. string.sub(KEYS[1], tag) .. ':' .. mark
    redis.call('SET', key, string.sub(lock, 1, 16), 'PX', string.format('%.0f', forgotten - now))
  end
end
local place = ARGV[6] and cjson.decode(ARGV[6])
if ARGV[5] > '1' or is_wide(lock) or place and lock and ends(lock) > now then
  local answer, ended = take_among(lock, now, micros, place, keep_mark)
  if answer then
    return answer
  end
  lock = ended
end
local token = micros
if lock then
  local last = tonumber(string.sub(lock, 1, 16))
  local remaining = tonumber(string.sub(lock, 17, 29)) - now
  if remaining <= 0 then
    token = math.max(micros, last + 1)
  else
    local ours, our_run = string.match(ARGV[1], '^([^ ]* ([^ ]*) )')
    if string.sub(lock, 30, 29 + #ours) ~= ours then
      local run = string.match(lock, '^[^ ]* ([^ #]*)', 30)
      return held_by(lock, now, run ~= '' and run == our_run)
    end
    token = last
  end
end
keep_mark()
-- Nearly always the time's text is the token's, which is less work than to format it: 10 digits of seconds (since 2001) and
-- 6 of microseconds, and then the end has 13.
local head = time[1] .. time[2]
if #head == 16 and token == micros then
  head = head .. now + ARGV[2]
else
  head = string.format('%016.0f%013.0f', token, now + ARGV[2])
end
redis.call('SET', KEYS[1], head .. ARGV[1] .. (lock and ARGV[4] or ''), 'PX', ARGV[2] + TOKEN_MEMORY)
return token == micros and token or {'granted', now, token}
