-- Removes a task that is not being delivered: from the schedule, its queue, the finished or the dead. An id that the
-- client chose is free again.
--
-- KEYS[1]  schedule (sorted set)
-- ARGV[1]  id
-- ARGV[2]  prefix of job keys
-- ARGV[3]  prefix of queue keys
-- ARGV[4]  prefix of finished registries
-- ARGV[5]  prefix of failed registries
-- ARGV[6]  prefix of RQ's results, which a stock worker leaves
-- ARGV[7]  prefix of the keys that remember the ids which clients chose
--
-- Returns the status that the task had, 'started' when it is being delivered and so was left alone,
-- or '' when there is no such task.
local key = ARGV[2] .. ARGV[1]
local job = redis.call('HMGET', key, 'status', 'origin', 'data')
if not job[3] then
  return ''
end
if job[1] == 'started' then
  return 'started'
end
local origin = job[2] or ''
local status = job[1] or 'scheduled'
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
  status = 'scheduled'
elseif status == 'queued' then
  redis.call('LREM', ARGV[3] .. origin, 1, ARGV[1])
end
redis.call('ZREM', ARGV[4] .. origin, ARGV[1])
redis.call('ZREM', ARGV[5] .. origin, ARGV[1])
redis.call('UNLINK', key, ARGV[6] .. ARGV[1], ARGV[7] .. ARGV[1])
return status
