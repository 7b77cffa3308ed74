-- In front of the scripts of locks: what is a lock.
-- '<token, 16 digits><until, 13 digits, server ms><holder> <run> <description>'; the holder is '' once released, the run is ''
-- where there is nothing to remember; neither has a blank.
-- One string, for one SET with its expiry: each call out of Lua costs more than all the cutting here.
-- How long a token is remembered after its lease, ms: TOKEN_MEMORY of base.py.
local TOKEN_MEMORY = 3600000
-- Returns whether a store has written it: it is a string of that kind, not too long, and with a token above which Lua's
-- doubles can still count on (until the year 2255).
local function is_lock(value)
  return type(value) == 'string' and #value <= 4096 and string.find(value,
    '^[0-8]%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d[^ ]* [^ ]* ')
end
-- GET, to which another type is an answer: the command's error, which is no lock.
local function get(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' and not string.find(value.err, 'WRONGTYPE', 1, true) then
    redis.call('GET', key) -- not permitted: this raises it
  end
  return value
end
