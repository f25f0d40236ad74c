-- Forgets a delivered task before the end of its retention, and deletes all that is kept of it. An id that the client
-- chose stays known for its time, so that the same task is not delivered twice.
--
-- ARGV (TaskArguments in tasks.py)
--   ID
--
-- Returns 'finished' if it was forgotten, its status if that is another one (the task is not changed then), and '' if
-- there is no such task.
local key = JOB_PREFIX .. ID
local status, origin, data = unpack(redis.call('HMGET', key, 'status', 'origin', 'data'))
if not data then
  return ''
end
if status ~= 'finished' then
  return status or 'scheduled'
end
redis.call('ZREM', FINISHED_PREFIX .. (origin or ''), ID)
redis.call('UNLINK', key, RESULTS_PREFIX .. ID)
return 'finished'
