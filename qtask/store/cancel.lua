-- Removes a task that waits for delivery, from the schedule or from its queue. A task that is being delivered or has
-- ended is not changed. The client may use its id again.
-- Needs is_foreign.lua.
--
-- KEYS (CancelKeys in tasks.py)
--   SCHEDULE       sorted set
--   LEDGER         hash
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua)
-- ARGV (TaskArguments)
--   ID
--
-- Returns the status of the task: 'scheduled' or 'queued' if it was removed; 'started', 'finished', 'failed' or
-- 'stopped' if it was not changed; '' if there is no such task.
local key = JOB_PREFIX .. ID
local status, origin, data = unpack(redis.call('HMGET', key, 'status', 'origin', 'data'))
if not data then
  return ''
end
status, origin = status or 'scheduled', origin or ''
local ended = status == 'finished' or status == 'failed' or status == 'stopped'
if status == 'started' or (ended and not redis.call('ZSCORE', SCHEDULE, ID)) then
  return status
end
local foreign = is_foreign(key)
if redis.call('ZREM', SCHEDULE, ID) == 1 then
  status = 'scheduled'
elseif status == 'queued' then
  redis.call('LREM', QUEUE_PREFIX .. origin, 1, ID)
else
  redis.call('ZREM', CANCELLED_PREFIX .. origin, ID)
end
redis.call('SREM', STOCK_RETRIES, ID)
redis.call('ZREM', FAILED_PREFIX .. origin, ID) -- a retry of a stock worker
redis.call('UNLINK', key, RESULTS_PREFIX .. ID)
if not foreign then
  redis.call('HINCRBY', LEDGER, 'cancelled:' .. origin, 1)
end
return status == 'queued' and status or 'scheduled'
