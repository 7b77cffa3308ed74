-- Read some records of an app's journal.
-- KEYS[1]  journal: see journal.lua
-- ARGV     from, to, 1 for the newest first (then from is the later one), how many
-- Returns  {{id, {field, value, ...}}, ...}
-- Atomic:  it is one moment's.
if ARGV[3] == '1' then
  return redis.call('XREVRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[4])
end
return redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[4])
