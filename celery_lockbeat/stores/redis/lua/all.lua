-- Behind free.lua, which is behind acquire.lua: take several keys, or none.
-- KEYS     for each lock those of acquire.lua; then the reservation (see reserve.lua), if there is one
-- ARGV     how many locks, '<token> <task id>' that is reserved or '', '<run> <description>', the holder of each lock, and the rest of
--          what acquire.lua gets
-- Returns  {0, now ms, token...}, {what is to be told to who is called}...; or {which lock is refused, the answer of acquire.lua}, {...}
-- Atomic:  of two that ask for some of the same keys one has all of its own, whatever their order. In a Cluster the keys are in several
--          slots, and no script has them all: there they are taken one by one (LockStore.acquire_all).
end
local count, reserved, run = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local reservation = reserved ~= '' and table.remove(KEYS)
local of_each, answers, calls = #KEYS / count, {0}, {}
local function tell(some)
  for _, text in ipairs(some or {}) do
    calls[#calls + 1] = text
  end
end
for i = 1, count do
  local first = (i - 1) * of_each
  local answer = take({unpack(KEYS, first + 1, first + of_each)}, {ARGV[3 + i] .. ' ' .. run, unpack(ARGV, count + 4)})
  if type(answer) == 'table' and answer[1] ~= 'granted' then
    for j = i - 1, 1, -1 do
      local freed = free({KEYS[(j - 1) * of_each + 1]}, {ARGV[3 + j]})
      tell(type(freed) == 'table' and freed[2])
    end
    return {{i, answer}, calls}
  end
  if type(answer) == 'number' then
    answer = {'granted', math.floor(answer / 1000), answer}
  end
  answers[2] = answers[2] or answer[2]
  answers[#answers + 1] = answer[3]
  tell(answer[4])
end
if reservation and get(reservation) == reserved then
  redis.call('DEL', reservation)
end
return {answers, calls}
