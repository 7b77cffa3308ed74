-- Rename the keys of an app's beats that hold what no store has written: another type. What they should hold is lost, then.
-- KEYS     replicas (see join.lua), and others of these beats
-- ARGV     the prefix of the keys of names, memory ms, and the type of each of KEYS
-- Returns  {key, its type, ...} of those renamed; the new name ends in ':unreadable'
-- Atomic:  what is renamed is what was looked at.
local renamed = {}
local function look(key, expected)
  local found = redis.call('TYPE', key).ok
  if found ~= expected and found ~= 'none' then
    redis.call('RENAME', key, key .. ':unreadable')
    redis.call('PEXPIRE', key .. ':unreadable', ARGV[2])
    renamed[#renamed + 1], renamed[#renamed + 2] = key, found
  end
end
for i, key in ipairs(KEYS) do
  look(key, ARGV[2 + i])
end
if renamed[1] == KEYS[1] then
  -- whoever was there joins again within seconds: until then nobody starts cold
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[1], time[1] * 1000, 'unreadable')
end
for _, replica in ipairs(redis.call('ZRANGE', KEYS[1], 0, 999)) do
  look(ARGV[1] .. replica, 'set')
end
return renamed
