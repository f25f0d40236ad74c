-- Removes a task that waits to be delivered, from the schedule or from its queue. One that is being delivered, or that
-- has ended, is left alone. An id that the client chose is free again.
-- Needs is_foreign.lua.
--
-- KEYS[1]  schedule (sorted set)
-- KEYS[2]  ledger (hash)
-- KEYS[3]  retries of stock workers (set; see settle.lua)
-- ARGV[1]  id
-- ARGV[2]  prefix of job keys
-- ARGV[3]  prefix of queue keys
-- ARGV[4]  prefix of failed registries
-- ARGV[5]  prefix of RQ's registries of cancelled jobs
-- ARGV[6]  prefix of RQ's results, which a stock worker leaves
--
-- Returns the status of the task: 'scheduled' or 'queued' when it was removed; 'started', 'finished', 'failed' or
-- 'stopped' when it was left alone; '' when there is no such task.
local id, key = ARGV[1], ARGV[2] .. ARGV[1]
local job = redis.call('HMGET', key, 'status', 'origin', 'data')
if not job[3] then
  return ''
end
local status, origin = job[1] or 'scheduled', job[2] or ''
local ended = status == 'finished' or status == 'failed' or status == 'stopped'
if status == 'started' or (ended and not redis.call('ZSCORE', KEYS[1], id)) then
  return status
end
local foreign = is_foreign(key)
if redis.call('ZREM', KEYS[1], id) == 1 then
  status = 'scheduled'
elseif status == 'queued' then
  redis.call('LREM', ARGV[3] .. origin, 1, id)
else
  redis.call('ZREM', ARGV[5] .. origin, id)
end
redis.call('SREM', KEYS[3], id)
redis.call('ZREM', ARGV[4] .. origin, id) -- a retry of a stock worker
redis.call('UNLINK', key, ARGV[6] .. id)
if not foreign then
  redis.call('HINCRBY', KEYS[2], 'cancelled:' .. origin, 1)
end
return status == 'queued' and status or 'scheduled'
