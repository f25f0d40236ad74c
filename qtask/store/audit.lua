-- Reads in one step what the audit compares: the ledger, and how many jobs are in each place. It only counts; nothing
-- here grows with the number of tasks.
--
-- KEYS[1]  ledger (hash)
-- KEYS[2]  schedule (sorted set)
-- KEYS[3]  retries of stock workers (set; see settle.lua)
-- ARGV[1]  prefix of queue keys
-- ARGV[2]  what stands behind the key of a queue in the key of RQ's intermediate queue
-- ARGV[3]  prefix of started registries
-- ARGV[4]  prefix of failed registries
-- ARGV[5]  prefix of RQ's registries of cancelled jobs
--
-- Returns {the ledger as field, value, …; jobs in the schedule; retries of stock workers;
-- then for each queue that a task was ever accepted for: {name, in the queue, in the intermediate queue, started, failed,
-- cancelled by RQ}}.
local ledger = redis.call('HGETALL', KEYS[1])
local found = {ledger, redis.call('ZCARD', KEYS[2]), redis.call('SCARD', KEYS[3])}
for i = 1, #ledger, 2 do
  local queue = string.match(ledger[i], '^accepted:(.*)$')
  if queue then
    found[#found + 1] = {
      queue,
      redis.call('LLEN', ARGV[1] .. queue),
      redis.call('LLEN', ARGV[1] .. queue .. ARGV[2]),
      redis.call('ZCARD', ARGV[3] .. queue),
      redis.call('ZCARD', ARGV[4] .. queue),
      redis.call('ZCARD', ARGV[5] .. queue),
    }
  end
end
return found
