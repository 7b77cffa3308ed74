-- Take a key, or say why not.
-- KEYS[1]  the lock (see lock.lua)
-- KEYS[2]  the mark of this run as finished (see release.lua); absent where there is no run
-- KEYS[3]  the mark of the whole that it is a try of; absent where there is none
--          It may write one more, with their hash tag: the mark of what was remembered in the lock.
-- ARGV     '<holder> <run> <description>', ttl ms, until when anybody waits for the answer (server ms; '0' for not known),
--          what is put behind the description of a key that has been used before, and how many may hold the key at a time;
--          absent where it is one
-- Returns  token, when it is now in microseconds: granted, and the usual case: a lone number is what a client reads fastest;
--          {'granted', now ms, token} with any other token, or {'finished', as a whole (0/1)}, or {'late', now ms}, or
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
      return type(beside) == 'string' and #beside == 16 and string.find(beside, '^%d+$') and {'finished', i - 2} or unreadable(KEYS[i], beside)
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
local function held_by(text, same_run)
  local run, description = string.match(text, '^[^ ]* ([^ #]*)[^ ]* (.*)$', 30)
  return {'held', ends(text) - now, same_run and 1 or 0, run, description}
end
if ARGV[5] or is_wide(lock) then
  local wide, was_wide, limit = wide_key(), is_wide(lock), tonumber(ARGV[5] or 1)
  local ours, our_run = string.match(ARGV[1], '^([^ ]*) ([^ ]*) ')
  local all = was_wide and redis.call('HGETALL', wide) or lock and {string.match(lock, '^[^ ]*', 30), lock} or {}
  local own, others, first, same = nil, 0, nil, nil
  for i = 1, #all, 2 do
    local name, text = all[i], all[i + 1]
    if ends(text) <= now then
      redis.call('HDEL', wide, name)
    elseif name == ours then
      own = text
    else
      others = others + 1
      first = (not first or ends(text) < ends(first)) and text or first
      same = our_run ~= '' and string.match(text, '^[^ ]* ([^ #]*)', 30) == our_run and text or same
    end
  end
  if not own and (same or others >= limit) then
    return held_by(same or first, same)
  end
  if own or others > 0 or limit > 1 then
    local last = lock and tonumber(string.sub(lock, 1, 16)) or 0
    local token = own and tonumber(string.sub(own, 1, 16)) or math.max(micros, last + 1)
    if not was_wide then
      redis.call('DEL', wide)
      if first then
        -- who has had the key alone has it among others from now on
        redis.call('HSET', wide, all[1] == '' and '#' .. string.sub(lock, 1, 16) or all[1], lock)
      end
    end
    keep_mark()
    local ended = string.format('%013.0f', now + ARGV[2])
    put_among(wide, string.format('%016.0f', math.max(token, last)), now, ours, string.format('%016.0f', token) .. ended .. ARGV[1])
    return token == micros and token or {'granted', now, token}
  end
  redis.call('DEL', wide) -- nobody has it, and one is to
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
      return held_by(lock, run ~= '' and run == our_run)
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
