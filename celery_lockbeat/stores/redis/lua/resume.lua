-- End pauses, and ask for what they have passed over.
-- KEYS[1]  flags, KEYS[2] lapses (see pause.lua), KEYS[3] requests, KEYS[4] queue (see ask.lua), KEYS[5] failures (see failed.lua)
-- ARGV     memory ms, only those that are over by their time (0/1), what requests are named or '', their text, names...
-- Returns  for each the flag as it was, or ''
-- Atomic:  of two who resume one gets the flag, and what a claim has passed over is in the request or in the next pause.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before, changed, gone, asked, queued = {}, {}, {}, {}, {}
for i, text in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV, 5))) do
  local name, flag = ARGV[4 + i], read_flag(text)
  before[i] = ''
  if flag and flag.p == 1 and (ARGV[2] == '0' or (flag.u or math.huge) <= now) then
    before[i] = text
    if ARGV[3] ~= '' and (flag.n or 0) > 0 then
      local id, first, last = ARGV[3] .. '-' .. i, flag.f or '', flag.l or ''
      asked[#asked + 1] = id
      asked[#asked + 1] = string.format('0 %.0f %d %d %d ', flag.n, #name, #first, #last) .. name .. first .. last .. ARGV[4]
      queued[#queued + 1], queued[#queued + 2] = now, id
    end
    flag.p, flag.u, flag.t, flag.n, flag.f, flag.l = nil, nil, nil, nil, nil, nil
    changed[#changed + 1], changed[#changed + 2] = name, cjson.encode(flag)
    gone[#gone + 1] = name
  end
end
redis.call('HDEL', KEYS[5], unpack(ARGV, 5))
if #changed > 0 then
  redis.call('HSET', KEYS[1], unpack(changed))
  redis.call('ZREM', KEYS[2], unpack(gone))
end
if #asked > 0 then
  redis.call('HSET', KEYS[3], unpack(asked))
  redis.call('ZADD', KEYS[4], unpack(queued))
  redis.call('PEXPIRE', KEYS[3], ARGV[1])
  redis.call('PEXPIRE', KEYS[4], ARGV[1])
end
return before
