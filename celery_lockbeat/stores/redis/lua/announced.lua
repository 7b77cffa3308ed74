-- Tell what members of an app have announced.
-- KEYS[1]  announced, KEYS[2] until (see announce.lua)
-- ARGV     limit, then names...; none: all
-- Returns  {now ms, {name, what announce.lua has written, ...}}
-- Atomic:  what is told was known at one moment.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local names = {}
for i = 2, #ARGV do
  names[#names + 1] = ARGV[i]
end
if #names == 0 then
  names = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.0f', now), '+inf', 'LIMIT', 0, ARGV[1])
end
local told = {}
for start = 1, #names, 1000 do
  local some = {unpack(names, start, math.min(start + 999, #names))}
  for i, value in ipairs(redis.call('HMGET', KEYS[1], unpack(some))) do
    if value then
      told[#told + 1], told[#told + 2] = some[i], value
    end
  end
end
return {now, told}
