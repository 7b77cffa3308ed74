-- Claim the ticks that are due, tell what is overdue, and forget what nobody lists any more.
-- KEYS[1]  entries: hash, entry -> its state (see state.lua)
-- KEYS[2]  claims: hash, task id -> '<replica> <run> <length of the entry> <entry><details>'
-- KEYS[3]  pending: sorted set, task id by the server ms from which on anybody may take it over
-- KEYS[4]  replicas, KEYS[5] listing (see join.lua), KEYS[6] unlisted (see list.lua), KEYS[7] flags (see pause.lua)
-- ARGV     replica, ttl ms, alive ms, memory ms, backlog, overdue at once, overdue to skip, prefix of the keys of names,
--          then (entry, run, last_run_at, task id, '<length of the entry> <entry><details>', condition, the name of its flag or
--          '')...; without a task id only the last_run_at changes; the condition is '', or 1, if no other claim of the entry may
--          be pending, else 0, and the last_run_at that the entry must have
-- Returns  {now ms, listed (0/1), ms until the next is overdue (-1: none), {refusal or '' or why it is passed over...},
--          {task id, claim, ...}, {entry, the beginning of what is no state of it, ...}}; a claim that is too long is cut
-- Atomic:  the compare of the run count and the new claim must see one state, or two replicas could claim one tick; and one
--          flag, or what is paused could be claimed.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local replica, ttl, alive, memory = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local names, ids, flagged, unreadable = {}, {}, {}, {}
for i = 9, #ARGV, 7 do
  names[#names + 1], ids[#ids + 1], flagged[#flagged + 1] = ARGV[i], ARGV[i + 3], ARGV[i + 6]
end

local refusals = {}
if #names > 0 then
  local states = redis.call('HMGET', KEYS[1], unpack(names))
  local claims = redis.call('HMGET', KEYS[2], unpack(ids))
  local flags = redis.call('EXISTS', KEYS[7]) == 1 and redis.call('HMGET', KEYS[7], unpack(flagged)) or {}
  local entries_set, claims_set, pending_set, flags_set, read, given_up = {}, {}, {}, {}, {}, {}
  local backlog, until_ms = tonumber(ARGV[5]), string.format('%.0f', now + ttl)
  for i, name in ipairs(names) do
    local given = 2 + 7 * i
    -- as text: Lua writes large numbers with an exponent
    local run, condition = ARGV[given + 1], ARGV[given + 5]
    local state, count, pending, last = states[i], 0, 0, nil
    if state then
      count, pending, last = read_state(state)
      if not count then
        unreadable[#unreadable + 1], unreadable[#unreadable + 2] = name, string.sub(state, 1, 64)
        state = false
      end
      count, pending = tonumber(count or 0), tonumber(pending or 0)
      if pending >= backlog and redis.call('ZCOUNT', KEYS[3], '-inf', '+inf') == 0 then
        -- what it counts are claims that were dropped
        pending = 0
      end
    end
    local ours = claims[i] and string.sub(claims[i], 1, #replica + 1) == replica .. ' '
    -- whoever else has moved the entry on has dealt with this tick
    local stale = state and condition ~= '' and last ~= string.sub(condition, 2)
    local behind = state and (count >= tonumber(run) or (stale and count == tonumber(run) - 1))
    local is_next = ids[i] ~= '' and not claims[i] and not behind
    -- of several that have one flag each sees what the one before has made of it
    local flag = flagged[i] ~= '' and flags[i] and (read[flagged[i]] or read_flag(flags[i]))
    -- again, where its answer was lost
    local over = flag and flag.i == replica .. ' ' .. ids[i]
    if flag and not over and (ours or is_next) then
      local length, told = string.match(ARGV[given + 4], '^(%d+) (.*)$')
      over = pass_over(flag, now, replica .. ' ' .. ids[i], string.sub(told, length + 1))
      if over then
        read[flagged[i]] = flag
        if ours then
          -- it was granted, and nobody has heard of it
          given_up[#given_up + 1] = ids[i]
          pending = math.max(0, pending - 1)
        end
        entries_set[#entries_set + 1] = name
        if count > tonumber(run) then
          entries_set[#entries_set + 1] = (string.gsub(state, '^(%d+) %d+', '%1 ' .. pending))
        else
          entries_set[#entries_set + 1] = run .. ' ' .. pending .. ' ' .. ARGV[given + 2]
        end
      end
    end
    if over then
      refusals[i] = passed(flag)
    elseif ids[i] == '' then
      if state and (count > tonumber(run) or (count == tonumber(run) and stale and last ~= ARGV[given + 2])) then
        refusals[i] = state
      else
        entries_set[#entries_set + 1], entries_set[#entries_set + 2] = name, run .. ' ' .. pending .. ' ' .. ARGV[given + 2]
        refusals[i] = ''
      end
    elseif claims[i] then
      if ours then
        -- its answer was lost: granted again, with the newer time of the run
        if count == tonumber(run) then
          entries_set[#entries_set + 1], entries_set[#entries_set + 2] = name, run .. ' ' .. pending .. ' ' .. ARGV[given + 2]
        end
        pending_set[#pending_set + 1], pending_set[#pending_set + 2] = until_ms, ids[i]
        refusals[i] = ''
      else
        refusals[i] = state or run .. ' 0 ' .. ARGV[given + 2]
      end
    elseif behind then
      refusals[i] = state
    elseif state and pending >= (string.sub(condition, 1, 1) == '1' and 1 or backlog) then
      refusals[i] = state
    else
      -- a smaller count than expected is a state that the server has lost in part: the replica knows better
      entries_set[#entries_set + 1] = name
      entries_set[#entries_set + 1] = run .. ' ' .. (pending + 1) .. ' ' .. ARGV[given + 2]
      claims_set[#claims_set + 1] = ids[i]
      claims_set[#claims_set + 1] = replica .. ' ' .. run .. ' ' .. ARGV[given + 4]
      pending_set[#pending_set + 1], pending_set[#pending_set + 2] = until_ms, ids[i]
      refusals[i] = ''
    end
  end
  for name, flag in pairs(read) do
    flags_set[#flags_set + 1], flags_set[#flags_set + 2] = name, cjson.encode(flag)
  end
  if #flags_set > 0 then
    redis.call('HSET', KEYS[7], unpack(flags_set))
  end
  if #given_up > 0 then
    redis.call('HDEL', KEYS[2], unpack(given_up))
    redis.call('ZREM', KEYS[3], unpack(given_up))
  end
  if #entries_set > 0 then
    redis.call('HSET', KEYS[1], unpack(entries_set))
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
  end
  if #claims_set > 0 then
    redis.call('HSET', KEYS[2], unpack(claims_set))
  end
  if #pending_set > 0 then
    redis.call('ZADD', KEYS[3], unpack(pending_set))
    -- these may be new, and no beat may be there later to keep or to end them
    for i = 1, 3 do
      redis.call('PEXPIRE', KEYS[i], ARGV[4])
    end
  end
end

-- Who is there, and who is not any more? What only those list who are gone is listed by nobody.
local listed = redis.call('ZSCORE', KEYS[4], replica) and 1 or 0
if listed == 1 then
  redis.call('ZADD', KEYS[4], now, replica)
end
local gone = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', string.format('%.0f', now - alive), 'LIMIT', 0, 16)
if #gone > 0 then
  redis.call('SREM', KEYS[5], unpack(gone))
  if listed == 1 and redis.call('SCARD', KEYS[5]) == 0 then
    local there = redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. string.format('%.0f', now - alive), '+inf')
    for i, id in ipairs(there) do
      there[i] = ARGV[8] .. id
    end
    -- more than unpack can do are none of ours
    for _, id in ipairs(#there <= 1000 and gone or {}) do
      for _, name in ipairs(redis.call('SDIFF', ARGV[8] .. id, unpack(there))) do
        redis.call('ZADD', KEYS[6], 'NX', now, name)
      end
      redis.call('DEL', ARGV[8] .. id)
      redis.call('ZREM', KEYS[4], id)
    end
    redis.call('PEXPIRE', KEYS[6], ARGV[4])
  end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', string.format('%.0f', now - memory), 'LIMIT', 0, 100)) do
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[6], name)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - memory), 'LIMIT', 0, 100)) do
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
end

local overdue = {}
local late = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now), 'LIMIT', ARGV[7], ARGV[6])
if #late > 0 then
  local claims = redis.call('HMGET', KEYS[2], unpack(late))
  for i, id in ipairs(late) do
    if claims[i] then
      overdue[#overdue + 1], overdue[#overdue + 2] = id, string.sub(claims[i], 1, 65537)
    else
      redis.call('ZREM', KEYS[3], id)
    end
  end
end
local next_one = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local rest = next_one[2] and math.min(tonumber(next_one[2]) - now, memory) or -1
return {now, listed, rest, refusals, overdue, unreadable}
