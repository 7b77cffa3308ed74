-- Tell what is asked for, and whose pause is over by its time.
-- KEYS[1]  requests, KEYS[2] queue (see ask.lua), KEYS[3] lapses (see pause.lua), KEYS[4] entries (see claim.lua)
-- ARGV     what the keys of requests begin with among the entries, how many, how many to skip, how many that are over
-- Returns  {{name, request, what has been claimed or '', ...}, {names whose pause is over}}; each cut where it is too long
-- Atomic:  a request is told together with what has been claimed of it.
local asked, over = {}, {}
local names = redis.call('ZRANGE', KEYS[2], ARGV[3], ARGV[3] + ARGV[2] - 1)
if #names > 0 then
  local keys = {}
  for i, name in ipairs(names) do
    keys[i] = ARGV[1] .. name
  end
  local requests, states = redis.call('HMGET', KEYS[1], unpack(names)), redis.call('HMGET', KEYS[4], unpack(keys))
  for i, name in ipairs(names) do
    if requests[i] then
      local count = read_state(states[i] or '')
      asked[#asked + 1], asked[#asked + 2] = name, string.sub(requests[i], 1, 262144)
      asked[#asked + 1] = count and states[i] or ''
    else
      redis.call('ZREM', KEYS[2], name)
    end
  end
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  over = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, ARGV[4])
end
return {asked, over}
