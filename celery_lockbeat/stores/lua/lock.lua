-- In front of the scripts of locks: reading one.
-- A lock is '<token, 16 digits><until, 13 digits, server ms><holder> <run> <description>'; the holder is '' once released,
-- the run is '' where there is nothing to remember; neither has a blank.
-- One string, for one SET with its expiry: each call out of Lua costs more than all the cutting here.
local MOST = 4096
-- Returns the lock at a key, or '' where there is none; nothing, where there is what no store has written: another type, too
-- much of it, no digits, or a token above which Lua's doubles could not count on (in the year 2255).
local function lock_at(key)
  local lock = redis.pcall('GETRANGE', key, 0, MOST)
  if type(lock) == 'string' and #lock <= MOST and (lock == '' or string.find(lock,
      '^[0-8]%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d[^ ]* [^ ]* ')) then
    return lock
  end
end
