-- Forget claims that have been published; hand over those that could not be.
-- KEYS[1]  entries, KEYS[2] claims, KEYS[3] pending (see claim.lua)
-- ARGV     replica, count of the published, (task id, entry)..., then the task ids of those handed over
-- Returns  for each published one 1, or 0: it is not this replica's any more
-- Atomic:  a claim that is settled and its entry's count of pending claims are one fact.
local owner = ARGV[1] .. ' '
local published = tonumber(ARGV[2])
local ids, names = {}, {}
for i = 1, published do
  ids[i], names[i] = ARGV[1 + 2 * i], ARGV[2 + 2 * i]
end
local settled = {}
if published > 0 then
  local claims = redis.call('HMGET', KEYS[2], unpack(ids))
  local states = redis.call('HMGET', KEYS[1], unpack(names))
  local latest, ours = {}, {}
  for i, id in ipairs(ids) do
    settled[i] = 0
    if claims[i] and string.sub(claims[i], 1, #owner) == owner then
      settled[i] = 1
      ours[#ours + 1] = id
      local state = latest[names[i]] or states[i]
      if state then
        local count, pending, last_run_at = read_state(state)
        latest[names[i]] = count and count .. ' ' .. math.max(0, pending - 1) .. ' ' .. last_run_at
      end
    end
  end
  local changed = {}
  for name, state in pairs(latest) do
    changed[#changed + 1], changed[#changed + 2] = name, state
  end
  if #changed > 0 then
    redis.call('HSET', KEYS[1], unpack(changed))
  end
  if #ours > 0 then
    redis.call('HDEL', KEYS[2], unpack(ours))
    redis.call('ZREM', KEYS[3], unpack(ours))
  end
end
if #ARGV > 2 + 2 * published then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  for i = 3 + 2 * published, #ARGV do
    local claim = redis.call('HGET', KEYS[2], ARGV[i])
    if claim and string.sub(claim, 1, #owner) == owner then
      redis.call('ZADD', KEYS[3], 'XX', now, ARGV[i])
    end
  end
end
return settled
