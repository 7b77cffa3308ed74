-- Reserve a lock's key for a message that is about to be sent, or say which message or run is there.
-- KEYS[1]  the lock (see lock.lua, and wide.lua for what is beside it)
-- KEYS[2]  the reservation: '<token> <task id>', gone when its time is over
-- ARGV     '<token> <task id>', ttl ms, what is a part of the description of each run that counts; '' for none, and a number above 10^9
-- Returns  that number with a minus: it is reserved (a lone number is what a client reads fastest); {'reserved', the other one}, or {'held', remaining ms, run, description}
-- Atomic:  of two publishers one must find the place taken; and a run gives up its reservation with the very script that takes
--          the lock, so there is no moment at which neither of them tells that it is there.
local there = get(KEYS[2])
-- what is no text was not written by us, and goes
if type(there) == 'string' and there ~= ARGV[1] then
  return {'reserved', there}
end
if ARGV[3] ~= '' and type(there) ~= 'string' then
  local lock = get(KEYS[1])
  local holders = is_lock(lock) and (is_wide(lock) and redis.call('HVALS', wide_key()) or {lock}) or {}
  -- beside the holders is how many there may be, which has none (wide.lua); who is called has no run yet (line.lua)
  for _, text in ipairs(holders) do
    local holder, run, description = string.match(text, '^([^ ]*) ([^ #]*)[^ ]* (.*)$', 30)
    if holder and holder ~= '' and run ~= '' and string.find(description, ARGV[3], 1, true) then
      local time = redis.call('TIME')
      local remaining = ends(text) - (time[1] * 1000 + math.floor(time[2] / 1000))
      if remaining > 0 then
        return {'held', remaining, run, description}
      end
    end
  end
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return -ARGV[4]
