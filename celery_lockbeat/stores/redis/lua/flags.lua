-- In front of the scripts that read flags: what operators want of entries, in JSON. Its fields, which are left out where they
-- are nothing: p paused (1), u until (ms), s how many to skip, t and k what was told with either; of what the pause has passed
-- over, n how many, f and l the details of the first and last; i the last claim that was passed over, by replica and
-- task id, w why.
-- What no store has written counts as none.
local kinds = {p = 'number', u = 'number', s = 'number', n = 'number', t = 'string', k = 'string', f = 'string', l = 'string', i = 'string', w = 'string'}
local function read_flag(text)
  if not text or #text > 262144 then
    return
  end
  local read, flag = pcall(cjson.decode, text)
  if not read or type(flag) ~= 'table' then
    return
  end
  for name, value in pairs(flag) do
    if type(value) ~= kinds[name] then
      return
    end
  end
  return flag
end

-- Why a tick is to be passed over, and what was told of that; noted in the flag. Nothing, where it is not.
local function pass_over(flag, now, id, details)
  if flag.p == 1 and (flag.u or math.huge) > now then
    flag.n, flag.f, flag.l, flag.w = (flag.n or 0) + 1, flag.f or details, details, 'paused'
  elseif (flag.s or 0) > 0 then
    flag.s, flag.w = flag.s > 1 and flag.s - 1 or nil, 'skipped'
  else
    return
  end
  flag.i = id
  return flag.w
end

-- As whoever claims reads it.
local function passed(flag)
  return flag.w .. ' ' .. ((flag.w == 'paused' and flag.t or flag.k) or '')
end
