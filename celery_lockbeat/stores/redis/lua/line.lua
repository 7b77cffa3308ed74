-- Behind wide.lua: who waits for a lock, in the order of arrival. A lock for which somebody waits is a wide one.
-- Those who wait are in the sorted set '<prefix>line:{<tag>}', by the server's time in microseconds at which they came, and what
-- is known of each in the hash '<prefix>told:{<tag>}', in JSON: until when it waits (ms), for how long it is waited for once it is called
-- (ms), its copy (the number of the message that is to come next, and when that was said, ms), what it says of itself, what is told when it is
-- called, and the mark of its task.
-- Who is called leaves the line, and has a place among the holders by '=<ticket>', so that nobody else takes what is free.
-- Who does not come in time is passed over: it takes its place again when it comes, by the time of its arrival.
-- Who waits to replace a holder is named beside the holders by '!replace', where a lock's text has its holder, while it is in the line.
local function next_to(kind)
  local tag = string.find(KEYS[1], '{', 1, true)
  return string.sub(KEYS[1], 1, tag - 6) .. kind .. string.sub(KEYS[1], tag)
end
local line, told = next_to('line:'), next_to('told:')
local function forget_waiter(ticket)
  redis.call('ZREM', line, ticket)
  redis.call('HDEL', told, ticket)
end
local function waiter(ticket)
  local known = redis.call('HGET', told, ticket)
  return known and cjson.decode(known)
end
-- The first whose time is not over.
local function first_in_line(now)
  while true do
    local first = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
    local known = first[1] and waiter(first[1])
    if not first[1] or known and known['until'] > now then
      return first[1], known, first[2]
    end
    forget_waiter(first[1])
  end
end
-- Gives a place among the holders to who is first; returns what is to be told, and how the place is written.
local function call_waiter(wide, now, ticket, known, since)
  redis.call('ZREM', line, ticket)
  local text = string.format('%016.0f%013.0f', since, now + known.grace) .. '=  ' .. known.description
  redis.call('HSET', wide, '=' .. ticket, text)
  if known.text == '' then
    -- it is there, and listens
    local wake = next_to('wake:') .. ':' .. ticket
    redis.call('RPUSH', wake, '1')
    redis.call('PEXPIRE', wake, known.grace)
  end
  return known.text, text
end
-- Gives what is free to those who are first; returns what is to be told. Forgets who was called and did not come.
local function call_next(wide, now)
  local all, count, limit, calls = redis.call('HGETALL', wide), 0, 1, {}
  for i = 1, #all, 2 do
    local name, kind = all[i], string.sub(all[i], 1, 1)
    if name == '!limit' then
      limit = tonumber(all[i + 1])
    elseif ends(all[i + 1]) > now then
      count = count + 1
    elseif kind == '=' then
      redis.call('HDEL', wide, name)
    end
  end
  while count < limit do
    local ticket, known, since = first_in_line(now)
    if not ticket then
      break
    end
    count, calls[#calls + 1] = count + 1, (call_waiter(wide, now, ticket, known, since))
  end
  return calls
end
-- Returns what the one says of itself that waits to replace the holder of this token: the one that has the lock longest; nil: nobody.
local function replaced_by(wide, token, now)
  local ticket = redis.call('HGET', wide, '!replace')
  ticket = ticket and string.sub(ticket, 30)
  local known = ticket and redis.call('ZSCORE', line, ticket) and waiter(ticket)
  if not known or known['until'] <= now then
    return nil
  end
  local all = redis.call('HGETALL', wide)
  for i = 1, #all, 2 do
    local text = all[i + 1]
    if not string.find(all[i], '^[!=#]') and ends(text) > now and string.sub(text, 1, 16) < token then
      return nil
    end
  end
  return known.description
end
