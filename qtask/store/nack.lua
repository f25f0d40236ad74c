-- Gives claimed tasks back to the head of their queue: those that the worker does not know of, or will not deliver any
-- more. Their attempt does not count, because it never began or the worker broke it off.
--
-- KEYS (NackKeys in leases.py)
--   STARTED  registry of the queue
--   QUEUE    list
--   LEDGER   hash
-- ARGV (NackArguments)
--   TOKEN       token of the worker
--   QUEUE_NAME  name of the queue
-- then the ids that the worker keeps
--
-- Returns how many were given back.
local kept = {}
for i = FIRST, #ARGV do
  kept[ARGV[i]] = true
end
local back = {}
for _, member in ipairs(redis.call('ZRANGE', STARTED, 0, -1)) do
  local id, token = string.match(member, '^([^:]*):(.*)$')
  if token == TOKEN and not kept[id] then
    redis.call('ZREM', STARTED, member)
    local key = JOB_PREFIX .. id
    if redis.call('HEXISTS', key, 'data') == 1 then
      redis.call('HSET', key, 'status', 'queued')
      redis.call('HINCRBY', key, 'attempt', -1)
      back[#back + 1] = id
    else
      redis.call('HINCRBY', LEDGER, 'deleted:' .. QUEUE_NAME, 1) -- by another program
    end
  end
end
for i = 1, #back do
  redis.call('LPUSH', QUEUE, back[i])
end
return #back
