-- In front of the scripts of locks: what is a lock.
-- '<token, 16 digits><until, 13 digits, server ms><holder> <run> <description>'; the holder is '' once released, the run is ''
-- where there is nothing to remember; neither has a blank nor a '#'.
-- Once released, the run may be followed by what is remembered as finished, in place of a key of its own: '#<digest, 12>', the
-- end of that key's name. It is remembered until the server ms that follow the digest; where there are none, until 10^12 ms
-- (31 years) after `until`, which is long over then: so the lock is free to all, and has 44 bytes, as many as Redis keeps at once.
-- A description that ends in ' #': the key had been used before, and will be again. What finishes under it gets a key of its own
-- at once, or each acquire would have to move what is remembered here.
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
