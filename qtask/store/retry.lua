-- Retries dead tasks: they go back into their queues and get all their attempts again; their outcomes become history.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
--
-- KEYS (RetryKeys in tasks.py)
--   QUEUES         set of queue keys
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua), which are not dead
-- ARGV (RetryArguments)
--   OUTCOMES_KEEP  outcomes to keep in the history
-- then the ids
--
-- Returns the ids that were dead and are now queued.
local queued = {}
for i = FIRST, #ARGV do
  local id = ARGV[i]
  local key = JOB_PREFIX .. id
  local origin = redis.call('HGET', key, 'origin')
  local is_dead = origin and redis.call('SISMEMBER', STOCK_RETRIES, id) == 0
  if is_dead and redis.call('ZREM', FAILED_PREFIX .. origin, id) == 1 then
    start_over(key, OUTCOMES_KEEP)
    redis.call('HSET', key, 'status', 'queued')
    redis.call('UNLINK', RESULTS_PREFIX .. id)
    redis.call('SADD', QUEUES, QUEUE_PREFIX .. origin)
    redis.call('RPUSH', QUEUE_PREFIX .. origin, id)
    queued[#queued + 1] = id
  end
end
return queued
