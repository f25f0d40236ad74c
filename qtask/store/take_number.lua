-- Leases a node number to a process that makes ids: the next one that no other process holds.
--
-- KEYS[1]  counter of the numbers given out
-- ARGV[1]  prefix of the keys that say who holds a number
-- ARGV[2]  how many numbers there are
-- ARGV[3]  nonce of the process
-- ARGV[4]  seconds for which it may use the number
--
-- Returns the number, and Redis's time as TIME gives it. Returns an error when all the numbers that it tried are held.
for _ = 1, 10000 do
  local number = redis.call('INCRBY', KEYS[1], 1) % ARGV[2]
  if redis.call('SET', ARGV[1] .. string.format('%d', number), ARGV[3], 'NX', 'EX', ARGV[4]) then
    return {number, redis.call('TIME')}
  end
end
return redis.error_reply('ERR every node number that was tried is held by another process')
