-- Take over claims that were not settled in time.
-- KEYS[1]  claims, KEYS[2] pending, KEYS[3] entries (see claim.lua), KEYS[4] flags (see pause.lua)
-- ARGV     replica, ttl ms, then (task id, the name of its flag or '')...
-- Returns  for each 1, now or by an earlier call whose answer was lost; or 0: another was faster, or it has been settled; or
--          why it is passed over: then it is forgotten
-- Atomic:  two replicas that find the same claim overdue must not both publish it, nor either of them what is paused.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for i = 3, #ARGV, 2 do
  local due = redis.call('ZSCORE', KEYS[2], ARGV[i])
  local claim = due and redis.call('HGET', KEYS[1], ARGV[i])
  local owner, told = string.match(claim or '', '^([^ ]*)( .*)$')
  local ours = owner and (tonumber(due) <= now or owner == ARGV[1])
  local flag = ARGV[i + 1] ~= '' and read_flag(redis.call('HGET', KEYS[4], ARGV[i + 1]))
  local over = flag and flag.i == ARGV[1] .. ' ' .. ARGV[i]
  if ours and not over and flag and flag.p == 1 and (flag.u or math.huge) > now then
    local length, rest = string.match(told, '^ %d+ (%d+) (.*)$')
    local name = length and string.sub(rest, 1, length)
    over = name and pass_over(flag, now, ARGV[1] .. ' ' .. ARGV[i], string.sub(rest, length + 1))
    if over then
      redis.call('HSET', KEYS[4], ARGV[i + 1], cjson.encode(flag))
      redis.call('HDEL', KEYS[1], ARGV[i])
      redis.call('ZREM', KEYS[2], ARGV[i])
      local count, pending, last_run_at = read_state(redis.call('HGET', KEYS[3], name) or '')
      if count then
        redis.call('HSET', KEYS[3], name, count .. ' ' .. math.max(0, pending - 1) .. ' ' .. last_run_at)
      end
    end
  end
  if over then
    taken[#taken + 1] = passed(flag)
  elseif ours then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[1] .. told)
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[2]), ARGV[i])
    taken[#taken + 1] = 1
  else
    taken[#taken + 1] = 0
  end
end
return taken
