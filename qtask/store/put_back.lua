-- Puts back into the queue what one worker has claimed and does not know of, or will not deliver any more.
--
-- KEYS[1]  started registry
-- KEYS[2]  queue (list)
-- KEYS[3]  ledger (hash)
-- ARGV[1]  prefix of job keys
-- ARGV[2]  token of the worker
-- ARGV[3]  queue name
-- then the ids that the worker keeps
--
-- Returns how many were put back. Their attempt does not count: it never began, or was broken off by the worker.
local kept = {}
for i = 4, #ARGV do
  kept[ARGV[i]] = true
end
local back = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local id, token = string.match(member, '^([^:]*):(.*)$')
  if token == ARGV[2] and not kept[id] then
    redis.call('ZREM', KEYS[1], member)
    local key = ARGV[1] .. id
    if redis.call('HEXISTS', key, 'data') == 1 then
      redis.call('HSET', key, 'status', 'queued')
      redis.call('HINCRBY', key, 'attempt', -1)
      back[#back + 1] = id
    else
      redis.call('HINCRBY', KEYS[3], 'deleted:' .. ARGV[3], 1) -- by another program
    end
  end
end
for i = 1, #back do
  redis.call('LPUSH', KEYS[2], back[i])
end
return #back
