-- Forgets a delivered task before the end of its keeping, with all that is kept of it. An id that the client chose stays
-- remembered for its time, so that the same task is not delivered twice.
--
-- ARGV[1]  id
-- ARGV[2]  prefix of job keys
-- ARGV[3]  prefix of finished registries
-- ARGV[4]  prefix of RQ's results, which a stock worker leaves
--
-- Returns 'finished' when it was forgotten, another status when the task has another one and was left alone, '' when
-- there is no such task.
local id, key = ARGV[1], ARGV[2] .. ARGV[1]
local job = redis.call('HMGET', key, 'status', 'origin', 'data')
if not job[3] then
  return ''
end
if job[1] ~= 'finished' then
  return job[1] or 'scheduled'
end
redis.call('ZREM', ARGV[3] .. (job[2] or ''), id)
redis.call('UNLINK', key, ARGV[4] .. id)
return 'finished'
