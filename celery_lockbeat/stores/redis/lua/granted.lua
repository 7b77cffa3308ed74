-- Behind acquire.lua: with the lock, what its message has reserved is over.
end)()
if (type(answer) == 'number' or answer[1] == 'granted') and get(reservation) == reserved then
  redis.call('DEL', reservation)
end
return answer
