-- In front of acquire.lua: take a place among the holders of a lock, or one in its line. Who asks is taken for one in the line, of
-- its arrival (or the last, if it would not wait); what is free is given to the first, until it is its turn, or nothing is free.
-- Returns  nil and the lock as it is then: nobody else has it, or waits for it, and one is to have it: as any lock;
--          {'granted', now ms, token, calls}, or a lone token as acquire.lua; {'held', remaining, same run, run, description, why, calls, who},
--          why it has no place in line being '', 'queued', 'full', 'waited' or 'superseded', and who what the one says of itself that has it; or {'waiting', since, began ms, copy (0:
--          it is on its way), how many are before it, remaining, run, description, calls}. calls: what is to be told to those who are called
-- So many ms after a copy of a waiting message was to be sent, any other counts for it; and so long it is remembered that one was superseded.
local COPY_IS_LOST, REMEMBERED = 90000, 3600000

-- What is known of who has taken the place of a task, beside the mark that says so.
local function superseded_by(mark)
  return next_to('by:') .. ':' .. mark
end

-- Writes T's place in line: nil, calls, its copy and when it began; or says why it has none, and who has it, as that one says of itself.
local function wait_in_line(now, place, since, called)
  local ticket, known = place.ticket, waiter(place.ticket)
  local began = known and known.began or place.began > 0 and place.began or now
  local length, calls = redis.call('ZCARD', line), {}
  if began + place['for'] <= now then
    forget_waiter(ticket)
    return 'waited'
  elseif place.kind == 'one' and not known and (length > 0 or called) then
    local first = not called and waiter(redis.call('ZRANGE', line, 0, 0)[1])
    return 'queued', called and string.match(called.text, '^[^ ]* [^ ]* (.*)$', 30) or first and first.description
  elseif place.kind == 'latest' or place.kind == 'replace' then
    for _, other in ipairs(redis.call('ZRANGE', line, 0, -1)) do
      local theirs = other ~= ticket and waiter(other)
      if theirs and theirs.kind == place.kind then
        local older = tonumber(redis.call('ZSCORE', line, other)) < since
        local loses, wins = older and theirs or place, older and place or theirs
        redis.call('SET', next_to('done:') .. ':' .. loses.mark, '0000000000000001', 'PX', REMEMBERED)
        redis.call('SET', superseded_by(loses.mark), wins.description, 'PX', REMEMBERED)
        if not older then
          forget_waiter(ticket)
          return 'superseded', wins.description
        end
        forget_waiter(other)
        calls[#calls + 1] = theirs.text
      end
    end
  elseif not known and length >= place.room then
    return 'full'
  end
  local copy, renewed = place.copy + 1, now
  if known and (place.copy < known.copy - (place.again and 1 or 0)) and now - known.renewed < COPY_IS_LOST then
    copy, renewed, place.text = 0, known.renewed, known.text
  elseif known then
    copy = math.max(copy, known.copy)
  end
  place.text = string.gsub(place.text, '"@since"', string.format('%.0f', since))
  place.since, place.began, place.renewed, place['until'] = string.format('%.0f', since), began, renewed, began + place['for']
  place.copy = copy > 0 and copy or known.copy
  redis.call('ZADD', line, string.format('%.0f', since), ticket)
  redis.call('HSET', told, ticket, cjson.encode(place))
  for _, key in ipairs({line, told}) do
    redis.call('PEXPIRE', key, string.format('%.0f', math.max(redis.call('PTTL', key), place['for'] + TOKEN_MEMORY)))
  end
  return nil, calls, copy, began
end

local function take_among(lock, now, micros, place, keep_mark)
  local wide, was_wide, limit = wide_key(), is_wide(lock), tonumber(ARGV[5])
  local last = lock and tonumber(string.sub(lock, 1, 16)) or 0
  local ours, our_run = string.match(ARGV[1], '^([^ ]*) ([^ ]*) ')
  local all = was_wide and redis.call('HGETALL', wide) or lock and {string.match(lock, '^[^ ]*', 30), lock} or {}
  local own, same, first, called, latest, others = nil, nil, nil, nil, nil, 0
  for i = 1, #all, 2 do
    local name, text = all[i], all[i + 1]
    local kind = string.sub(name, 1, 1)
    if kind == '!' then
      -- no holder
    elseif ends(text) <= now then
      redis.call('HDEL', wide, name)
    elseif name == ours then
      own = text
    elseif place and name == '=' .. place.ticket then
      called = text
    else
      others = others + 1
      first = (not first or ends(text) < ends(first)) and text or first
      same = our_run ~= '' and string.match(text, '^[^ ]* ([^ #]*)', 30) == our_run and text or same
      latest = kind == '=' and (not latest or text > latest.text) and {ticket = string.sub(name, 2), text = text} or latest
    end
  end
  if not own and same then
    return held_by(same, now, true)
  end
  local calls, since = {}, math.huge
  if place then
    local known = waiter(place.ticket)
    since = tonumber(known and known.since or place.since)
    if since == 0 then
      since = math.max(micros, tonumber(redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')[2] or 0) + 1)
    end
    redis.call('HDEL', wide, '=' .. place.ticket)
    if not own and others >= limit and latest and since < tonumber(string.sub(latest.text, 1, 16)) then
      -- who is called came after us, and is not here yet: it waits on, in its place
      redis.call('HDEL', wide, '=' .. latest.ticket)
      redis.call('ZADD', line, string.sub(latest.text, 1, 16), latest.ticket)
      others = others - 1
    end
  end
  local granted = own
  while not granted and others < limit do
    local ticket, known, arrived = first_in_line(now)
    granted = not ticket or tonumber(arrived) >= since
    if not granted then
      calls[#calls + 1], first = call_waiter(wide, now, ticket, known, arrived)
      others = others + 1
    end
  end
  if granted and place then
    forget_waiter(place.ticket)
  end
  if granted and not own and others == 0 and limit == 1 and redis.call('ZCARD', line) == 0 then
    redis.call('DEL', wide)
    return nil, lock and string.sub(lock, 1, 16) .. '0000000000000' .. string.sub(lock, 30)
  end
  local why, told, copy, began
  if not granted and place then
    why, told, copy, began = wait_in_line(now, place, since, latest)
    for _, text in ipairs(not why and told or {}) do
      calls[#calls + 1] = text
    end
  end
  if not granted and #calls == 0 and not copy then
    local answer = held_by(first, now)
    answer[6], answer[7], answer[8] = why or '', calls, why and told
    return answer
  end
  if not was_wide then
    redis.call('DEL', wide)
    if first then
      -- who has had the key alone has it among others from now on
      redis.call('HSET', wide, all[1] == '' and '#' .. string.sub(lock, 1, 16) or all[1], lock)
    end
  end
  redis.call('HSET', wide, '!limit', limit)
  if copy and place.kind == 'replace' then
    redis.call('HSET', wide, '!replace', string.format('%29s', '') .. place.ticket)
  end
  local token = own and tonumber(string.sub(own, 1, 16)) or math.max(micros, last + 1)
  if granted then
    redis.call('HSET', wide, ours, string.format('%016.0f%013.0f', token, now + ARGV[2]) .. ARGV[1])
    last = math.max(token, last)
  end
  keep_mark()
  summarize(wide, string.format('%016.0f', last), now)
  if granted then
    return token == micros and #calls == 0 and token or {'granted', now, token, calls}
  end
  local answer = held_by(first, now)
  if not copy then
    answer[6], answer[7], answer[8] = why or '', calls, why and told
    return answer
  end
  local before = redis.call('ZRANK', line, place.ticket)
  return {'waiting', string.format('%.0f', since), began, copy, before, answer[2], answer[4], answer[5], calls}
end
