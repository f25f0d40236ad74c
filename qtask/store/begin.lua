-- Counts a delivery that a stock RQ worker begins; QTask's own workers count theirs when they claim.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
-- Needs requeued.lua.
--
-- KEYS[1]  job
-- KEYS[2]  failed registry
-- KEYS[3]  retries of stock workers (set; see settle.lua)
-- KEYS[4]  schedule (sorted set)
-- ARGV[1]  id
-- ARGV[2]  outcomes to keep in the history
--
-- Returns {now in Unix seconds, attempt, due}, which mean what they mean in claim.lua.
local time = redis.call('TIME')
local job = redis.call('HMGET', KEYS[1], 'exc_info', 'due')
local has_history = job[1] == ''
if job[1] and not has_history then
  local _
  _, has_history = requeued(ARGV[1], KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2])
end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
return {string.format('%.6f', time[1] + time[2] / 1000000), has_history and -attempt or attempt, job[2] or ''}
