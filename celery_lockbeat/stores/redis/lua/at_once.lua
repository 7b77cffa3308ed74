-- In front of the files of reserve.lua, which says what the keys and arguments are: the usual, with no function made for the rest.
-- Nobody has the lock, or it was released (see lock.lua), and nobody has it reserved.
local lock = ARGV[3] ~= '' and redis.pcall('GET', KEYS[1])
if (not lock or type(lock) == 'string' and string.sub(lock, 30, 30) == ' ')
  and redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2], 'NX') then
  return -ARGV[4]
end
