-- Puts claimed tasks whose lease ended back into their queues, at the front: they have waited longest. That their
-- delivery was lost goes into their history; whether they may be tried once more, the worker that claims them decides.
-- A lease ends at its instant, or before it when the worker's heartbeat is gone. A stock RQ worker's lease bears
-- its plain instant as score; when that is past, the task (a foreign job bears created_at and no attempt) is taken
-- back as well.
-- Needs newest_lines.lua.
--
-- KEYS[1]  workers (sorted set: token by last heartbeat)
-- KEYS[2]  ledger (hash)
-- then two a queue:
--   started registry, queue (list)
-- ARGV[1]  prefix of job keys
-- ARGV[2]  seconds added to the score of a lease (see claim.lua)
-- ARGV[3]  instant (Unix seconds): a worker whose last heartbeat is not later counts as dead. It is the caller's, and
--          not reckoned from now: while this script waited for Redis, heartbeats did so, too.
-- ARGV[4]  most leases to take back from one queue
-- ARGV[5]  the outcome of a lost delivery (JSON on one line) with %ATTEMPT% and %NOW% in it
-- ARGV[6]  outcomes to keep a task
-- ARGV[7]  prefix of queue keys
--
-- Returns the ids that were taken back. The dead are forgotten in the same step, so it must be given every queue.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local most = tonumber(ARGV[4])
local dead, any = {}, false
for _, token in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])) do
  dead[token], any = true, true
end
local all, full = {}, false
for i = 3, #KEYS, 2 do
  local registry, queue = KEYS[i], KEYS[i + 1]
  local ended = redis.call('ZRANGEBYSCORE', registry, '(' .. ARGV[2], now + ARGV[2], 'LIMIT', 0, most)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', registry, '-inf', now, 'LIMIT', 0, most)) do
    local job = redis.call('HMGET', ARGV[1] .. string.match(member, '^[^:]*'), 'created_at', 'attempt')
    if not job[1] or job[2] then
      ended[#ended + 1] = member
    end
  end
  if any then
    -- Leases of dead workers lie anywhere in the registry; it holds no more than is in flight.
    for _, member in ipairs(redis.call('ZRANGE', registry, 0, -1)) do
      if dead[string.match(member, ':(.*)$')] then
        ended[#ended + 1] = member
      end
    end
  end
  local taken = 0
  for _, member in ipairs(ended) do
    if taken == most then
      full = true
      break
    end
    if redis.call('ZREM', registry, member) == 1 then
      local id = string.match(member, '^[^:]*')
      local key = ARGV[1] .. id
      local job = redis.call('HMGET', key, 'attempt', 'outcomes', 'data')
      if job[3] then
        local line = string.gsub(ARGV[5], '%%(%u+)%%', {ATTEMPT = job[1] or '1', NOW = string.format('%.6f', now)})
        local outcomes = newest_lines((job[2] or '') .. '\n' .. line, ARGV[6])
        redis.call('HSET', key, 'status', 'queued', 'outcomes', outcomes)
        redis.call('LPUSH', queue, id)
        taken = taken + 1
        all[#all + 1] = id
      else -- another program has deleted it
        redis.call('HINCRBY', KEYS[2], 'deleted:' .. string.sub(queue, #ARGV[7] + 1), 1)
      end
    end
  end
end
if not full then
  for token in pairs(dead) do
    redis.call('ZREM', KEYS[1], token)
  end
end
return all
