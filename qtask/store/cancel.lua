-- Removes a task that waits for delivery, from the schedule, its queue or its flow. A task that is being delivered or has
-- ended is not changed. The client may use its id again.
-- Needs is_foreign.lua.
-- Needs flows.lua.
-- Needs admission.lua.
--
-- KEYS (CancelKeys in tasks.py)
--   SCHEDULE       sorted set
--   LEDGER         hash
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua)
--   FLOWS          flows by the instant of the next look (sorted set; see flows.lua)
--   QUEUES         set of queue keys
-- ARGV (TaskArguments)
--   ID
--
-- Returns the status of the task: 'scheduled', 'deferred' (in its flow) or 'queued' if it was removed; 'started', 'finished', 'failed' or
-- 'stopped' if it was not changed; '' if there is no such task.
local key = JOB_PREFIX .. ID
local status, origin, data, extra = unpack(redis.call('HMGET', key, 'status', 'origin', 'data', 'extra'))
if not data then
  return ''
end
status, origin = status or 'scheduled', origin or ''
local ended = status == 'finished' or status == 'failed' or status == 'stopped'
if status == 'started' or (ended and not redis.call('ZSCORE', SCHEDULE, ID)) then
  return status
end
local foreign = is_foreign(key)
local flow, rank
if extra then
  flow, rank = flow_in(extra)
  flow = flow and flow_of(flow)
end
local held = {}
if redis.call('ZREM', SCHEDULE, ID) == 1 then
  status = 'scheduled'
elseif status == 'queued' then
  redis.call('LREM', QUEUE_PREFIX .. origin, 1, ID)
elseif flow and redis.call('ZREM', WAITING_PREFIX .. flow.name, rank and rank .. ':' .. ID or ID) == 1 then
  held[origin] = -1
else
  redis.call('ZREM', CANCELLED_PREFIX .. origin, ID)
end
redis.call('SREM', STOCK_RETRIES, ID)
redis.call('ZREM', FAILED_PREFIX .. origin, ID) -- a retry of a stock worker
redis.call('UNLINK', key, RESULTS_PREFIX .. ID)
if flow then
  local time = redis.call('TIME')
  redis.call('ZREM', flow.slots, ID)
  admit_from({flow}, time[1] + time[2] / 1000000, held)
end
if not foreign then
  redis.call('HINCRBY', LEDGER, 'cancelled:' .. origin, 1)
end
return (status == 'queued' or status == 'deferred') and status or 'scheduled'
