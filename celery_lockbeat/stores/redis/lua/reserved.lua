-- In front of acquire.lua, for a run whose message has reserved the lock's key (see reserve.lua); granted.lua is behind it.
-- KEYS[#], ARGV[#]  the reservation, and '<token> <task id>'; the others are those of acquire.lua
-- Atomic:  there is no moment at which neither the message nor its run tells that it is there.
local reservation, reserved = table.remove(KEYS), table.remove(ARGV)
local answer = (function()
