-- In front of acquire.lua, for who asks for several keys at once; or_free.lua and all.lua are behind it.
local function take(KEYS, ARGV)
