-- End a reservation (see reserve.lua).
-- KEYS[1]  the reservation
-- ARGV     '<token> <task id>'
-- Returns  1, or 0 when it is over, or another's
-- Atomic:  between a separate compare and the delete its time could end, and another message have the place.
if get(KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
return 1
