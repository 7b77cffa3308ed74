-- Read some records of an app's journal.
-- KEYS[1]  journal: see journal.lua
-- ARGV     from, to, 1 for the newest first (then from is the later one), how many
-- Returns  {{id, {field, value, ...}}, ...}
-- Atomic:  it is one moment's.
local command = ARGV[3] == '1' and 'XREVRANGE' or 'XRANGE'
return redis.call(command, KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[4])
