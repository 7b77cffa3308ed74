-- Send all away who wait for a lock: each is told, and ends as one that has waited.
-- KEYS[1]  the lock (see lock.lua)
-- ARGV     for how long that is remembered, ms
-- Returns  {what is to be told...}
-- Atomic:  nobody is called who is sent away, or the other way round.
local calls = {}
for _, ticket in ipairs(redis.call('ZRANGE', line, 0, -1)) do
  local known = waiter(ticket)
  if known then
    redis.call('SET', next_to('done:') .. ':' .. known.mark, '0000000000000002', 'PX', ARGV[1])
    calls[#calls + 1] = known.text
  end
  forget_waiter(ticket)
end
return calls
