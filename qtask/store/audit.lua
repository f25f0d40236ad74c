-- Reads the figures of an audit in one step: the ledger, and how many jobs are in each place. It only counts, so its
-- cost does not depend on the number of tasks.
--
-- KEYS (AuditKeys in audit.py)
--   LEDGER         hash
--   SCHEDULE       sorted set
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua)
--
-- Returns (AuditReply)
--   COUNTS     the ledger as field, value, …
--   SCHEDULED  jobs in the schedule
--   RETRYING   retries of stock workers
--   BY_QUEUE   for each queue that a task was ever accepted for (AuditRow): its NAME, and how many jobs are QUEUED, in RQ's
--              INTERMEDIATE queue, STARTED, DEAD and CANCELLED by RQ
local counts = redis.call('HGETALL', LEDGER)
local rows = {}
for i = 1, #counts, 2 do
  local queue = string.match(counts[i], '^accepted:(.*)$')
  if queue then
    rows[#rows + 1] = {
      [NAME] = queue,
      [QUEUED] = redis.call('LLEN', QUEUE_PREFIX .. queue),
      [INTERMEDIATE] = redis.call('LLEN', QUEUE_PREFIX .. queue .. INTERMEDIATE_SUFFIX),
      [STARTED] = redis.call('ZCARD', STARTED_PREFIX .. queue),
      [DEAD] = redis.call('ZCARD', FAILED_PREFIX .. queue),
      [CANCELLED] = redis.call('ZCARD', CANCELLED_PREFIX .. queue),
    }
  end
end
return {
  [COUNTS] = counts,
  [SCHEDULED] = redis.call('ZCARD', SCHEDULE),
  [RETRYING] = redis.call('SCARD', STOCK_RETRIES),
  [BY_QUEUE] = rows,
}
