-- Tell the format in which a store is kept: the newest that was ever told.
-- KEYS[1]  format: '<number> <release that has begun it>'
-- ARGV     the same two of who asks
-- Returns  {number, release}
-- Atomic:  of two releases that come at the same time the newer counts.
local told = redis.pcall('GET', KEYS[1])
local number, release = string.match(type(told) == 'string' and told or '', '^(%d+) (%C+)$')
if number and tonumber(number) >= tonumber(ARGV[1]) then
  return {number, release}
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
return {ARGV[1], ARGV[2]}
