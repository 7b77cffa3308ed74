-- In front of the scripts of beats: reading the state of an entry, '<total run count> <pending claims> <last_run_at>'.
-- Returns the three as text; nothing, where it is what no store has written: no such numbers, or too long. It counts as lost
-- then, is told to whoever asked, and is written anew by the next one who claims or lists the entry.
local function read_state(state)
  local count, pending, last_run_at = string.match(state, '^(%d+) (%d+) (.*)$')
  if count and #count <= 15 and #pending <= 3 and #state <= 65536 then
    return count, pending, last_run_at
  end
end
