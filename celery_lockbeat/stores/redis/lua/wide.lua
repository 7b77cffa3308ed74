-- Behind lock.lua: a lock with more than one holder.
-- Its key's text has '#' for a holder, as nobody is named, the last token of all its holders, and the end of the one that ends
-- last: a script that knows of one holder alone finds it held, or free. The holders are beside it, in the hash
-- '<prefix>wide:{<tag>}': each by its name, with the text that its lock would have; by '#<token>' what was released, and is held
-- on, or is only known to have been; by '=<ticket>' who is called (line.lua); and by '!limit' how many may be there, as was said last.
local function is_wide(lock)
  return lock and string.sub(lock, 30, 31) == '# '
end
local function wide_key()
  local tag = string.find(KEYS[1], '{', 1, true)
  return string.sub(KEYS[1], 1, tag - 6) .. 'wide:' .. string.sub(KEYS[1], tag)
end
local function ends(text)
  return tonumber(string.sub(text, 17, 29)) or 0
end
-- Writes what the lock itself tells of all; last: the last token.
local function summarize(wide, last, now)
  local all, latest = redis.call('HGETALL', wide), 0
  for i = 2, #all, 2 do
    latest = math.max(latest, ends(all[i]))
  end
  local kept = string.format('%.0f', math.max(latest - now, 0) + TOKEN_MEMORY)
  redis.call('SET', KEYS[1], last .. string.format('%013.0f', latest) .. '#  ', 'PX', kept)
  redis.call('PEXPIRE', wide, kept)
end
-- What is answered to who is refused for this one.
local function held_by(text, now, same_run)
  local run, description = string.match(text, '^[^ ]* ([^ #]*)[^ ]* (.*)$', 30)
  return {'held', ends(text) - now, same_run and 1 or 0, run, description}
end
