-- Try each command of the other scripts on a key that nobody uses, for what the server says; leaves nothing behind.
-- KEYS[1]  the key
-- Returns  {command, error, ...} for each that is refused or fails
-- Atomic:  nobody sees the key. Where it cannot be deleted it is text that ends by itself, to which the other commands are
--          an error of its type; where it cannot be that either, what would make a key is left out.
local answer = {}
local function try(command, ...)
  local result = redis.pcall(command, ...)
  local failed = type(result) == 'table' and result.err
  if failed and not string.find(failed, 'WRONGTYPE', 1, true) then
    answer[#answer + 1], answer[#answer + 2] = command, failed
    return false
  end
  return true
end

local key = KEYS[1]
try('TIME')
-- first: a server without memory refuses no writes of a script that has written something
local is_text = try('SET', key, '', 'PX', 1000)
local can_end = try('DEL', key)
if is_text or can_end then
  try('HSET', key, 'f', '')
  try('HSETNX', key, 'f', '')
  try('SADD', key, 'm')
  try('RPUSH', key, 'm')
end
try('GET', key)
try('EXISTS', key)
try('PEXPIRE', key, 1000)
try('PTTL', key)
try('TYPE', key)
if can_end then
  try('RENAME', key, key)
end
try('HGET', key, 'f')
try('HMGET', key, 'f')
try('HGETALL', key)
try('HVALS', key)
try('HDEL', key, 'f')
try('SREM', key, 'm')
try('SCARD', key)
try('SISMEMBER', key, 'm')
try('SDIFF', key)
try('ZADD', key, 'XX', 0, 'm')
try('ZREM', key, 'm')
try('ZCOUNT', key, '-inf', '+inf')
try('ZCARD', key)
try('ZRANK', key, 'm')
try('ZRANGE', key, 0, 0)
try('ZRANGEBYSCORE', key, '-inf', '+inf')
try('ZSCORE', key, 'm')
try('ZMSCORE', key, 'm')
try('ZREMRANGEBYSCORE', key, '-inf', 0)
try('XADD', key, '*', 'f', '')
try('XRANGE', key, '-', '+')
try('XREVRANGE', key, '+', '-')
try('XTRIM', key, 'MAXLEN', '~', 0)
if can_end then
  redis.call('DEL', key)
end
return answer
