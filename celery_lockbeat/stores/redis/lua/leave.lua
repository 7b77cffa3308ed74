-- Count a beat replica out. What it lists stays until somebody else is there who lists something.
-- KEYS[1]  replicas, KEYS[2] listing (see join.lua)
-- ARGV     replica
-- Atomic:  a replica that is counted out must not keep the others from forgetting what nobody lists.
redis.call('ZADD', KEYS[1], 'XX', 0, ARGV[1])
redis.call('SREM', KEYS[2], ARGV[1])
return 1
