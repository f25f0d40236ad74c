-- Counts a delivery that a stock RQ worker begins; QTask's own workers count theirs when they claim.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
-- Needs requeued.lua.
--
-- KEYS (BeginKeys in leases.py)
--   JOB            hash
--   FAILED         registry of its queue
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua)
--   SCHEDULE       sorted set
-- ARGV (BeginArguments)
--   ID             of the task
--   OUTCOMES_KEEP  outcomes to keep in the history
--
-- Returns (Begun) NOW in Unix seconds, and ATTEMPT and DUE as in claim.lua.
local time = redis.call('TIME')
local error, due = unpack(redis.call('HMGET', JOB, 'exc_info', 'due'))
local has_history = error == ''
if error and not has_history then
  local _
  _, has_history = requeued(ID, JOB, FAILED, STOCK_RETRIES, SCHEDULE, OUTCOMES_KEEP)
end
local attempt = redis.call('HINCRBY', JOB, 'attempt', 1)
return {
  [NOW] = string.format('%.6f', time[1] + time[2] / 1000000),
  [ATTEMPT] = has_history and -attempt or attempt,
  [DUE] = due or '',
}
