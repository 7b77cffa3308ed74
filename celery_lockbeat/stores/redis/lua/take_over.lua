-- Take over claims that were not settled in time.
-- KEYS[1]  claims, KEYS[2] pending (see claim.lua)
-- ARGV     replica, ttl ms, task ids...
-- Returns  for each 1, now or by an earlier call whose answer was lost; or 0: another was faster, or it has been settled
-- Atomic:  two replicas that find the same claim overdue must not both publish it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for i = 3, #ARGV do
  local due = redis.call('ZSCORE', KEYS[2], ARGV[i])
  local claim = due and redis.call('HGET', KEYS[1], ARGV[i])
  local owner, told = string.match(claim or '', '^([^ ]*)( .*)$')
  local ours = owner and (tonumber(due) <= now or owner == ARGV[1])
  if ours then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[1] .. told)
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[2]), ARGV[i])
  end
  taken[#taken + 1] = ours and 1 or 0
end
return taken
