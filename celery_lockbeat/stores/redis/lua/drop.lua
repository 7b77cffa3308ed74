-- Forget claims that cannot be read.
-- KEYS[1]  claims, KEYS[2] pending (see claim.lua)
-- ARGV     (task id, how what was read begins)...
-- Returns  the count of those dropped
-- Atomic:  what is dropped is what was read.
local dropped = 0
for i = 1, #ARGV, 2 do
  local claim = redis.call('HGET', KEYS[1], ARGV[i])
  if claim and string.sub(claim, 1, #ARGV[i + 1]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('ZREM', KEYS[2], ARGV[i])
    dropped = dropped + 1
  end
end
return dropped
