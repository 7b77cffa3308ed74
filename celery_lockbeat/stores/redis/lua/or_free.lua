-- Between acquire.lua and free.lua, for who asks for several keys at once (see all.lua).
end
local function free(KEYS, ARGV)
