-- Claims tasks from a queue for one worker: each gets a lease in RQ's started registry.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
-- Needs requeued.lua.
--
-- KEYS[1]  queue (list)
-- KEYS[2]  started registry (sorted set)
-- KEYS[3]  failed registry (sorted set)
-- KEYS[4]  retries of stock workers (set; see settle.lua)
-- KEYS[5]  ledger (hash)
-- KEYS[6]  schedule (sorted set)
-- ARGV[1]  most tasks to claim
-- ARGV[2]  prefix of job keys
-- ARGV[3]  token of the worker, the execution id of its claims
-- ARGV[4]  seconds of a lease beyond the task's own timeout
-- ARGV[5]  seconds of timeout where the job names none
-- ARGV[6]  seconds added to the score of a lease, so that RQ's own clean-up leaves it to us
-- ARGV[7]  outcomes to keep in the history of a dead task that RQ's own tools put back into the queue
-- ARGV[8]  bytes of dicts with which no more are claimed
-- ARGV[9]  queue name
--
-- Returns {now in Unix seconds, id, attempt, due, data, …}, four a task: attempt counts claims, from 1, and is negative
-- for a task that was dead and is tried again, since its first delivery lies behind it; due is in Unix seconds, or ''
-- where a stock rqscheduler released the task and did not write it down.
local call = redis.call -- a name of its own is found faster, and this runs for every task
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local claimed, leases = {string.format('%.6f', now)}, {}
-- Ends of leases by the timeout, which is the same for most tasks; in whole seconds, which are cheap to write and read.
local ends = {}
local room = tonumber(ARGV[8])
local deleted = 0
local popped = call('LPOP', KEYS[1], ARGV[1]) or {}
for position, id in ipairs(popped) do
  if room <= 0 then
    for i = #popped, position, -1 do
      call('LPUSH', KEYS[1], popped[i])
    end
    break
  end
  local key = ARGV[2] .. id
  -- Somebody else's key under such a name, of another type, must not cost the whole batch: it is passed over.
  local job = redis.pcall('HMGET', key, 'data', 'attempt', 'timeout', 'due', 'exc_info')
  if job[1] then
    local attempt = (tonumber(job[2]) or 0) + 1
    local has_history = job[5] == ''
    if job[5] and not has_history then
      local starts_over
      starts_over, has_history = requeued(id, key, KEYS[3], KEYS[4], KEYS[6], ARGV[7])
      attempt = starts_over and 1 or attempt
    end
    call('HSET', key, 'status', 'started', 'attempt', attempt)
    local timeout = tonumber(job[3]) or ARGV[5]
    if not ends[timeout] then
      ends[timeout] = string.format('%.0f', math.ceil(now + timeout + ARGV[4] + ARGV[6]))
    end
    leases[#leases + 1] = ends[timeout]
    leases[#leases + 1] = id .. ':' .. ARGV[3]
    claimed[#claimed + 1] = id
    claimed[#claimed + 1] = has_history and -attempt or attempt
    claimed[#claimed + 1] = job[4] or ''
    claimed[#claimed + 1] = job[1]
    room = room - #job[1]
  elseif not job.err then
    deleted = deleted + 1 -- by another program, while it was queued
  end
end
if deleted > 0 then
  call('HINCRBY', KEYS[5], 'deleted:' .. ARGV[9], deleted)
end
if #leases > 0 then
  call('ZADD', KEYS[2], unpack(leases))
end
return claimed
