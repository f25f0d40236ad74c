-- Reclaims tasks whose lease has ended: they go back to the head of their queues, because they have waited longest. The
-- lost delivery is added to their outcomes; the worker that claims them decides whether they have an attempt left. A
-- lease ends at its instant, or earlier if the heartbeat of its worker has stopped. The score of a stock RQ worker's
-- lease is a plain instant; when that has passed, the task is reclaimed as well (unless it is a foreign job, which has
-- created_at and no attempt).
-- Needs newest_lines.lua.
--
-- KEYS (ReclaimKeys in schedule.py)
--   WORKERS  sorted set: token by last heartbeat
--   LEDGER   hash
-- then for each queue (ReclaimedQueue)
--   STARTED  its registry
--   QUEUE    its list
-- ARGV (ReclaimArguments)
--   SILENT_SINCE   Unix seconds: a worker whose last heartbeat is not later counts as dead. The caller sets it, because
--                  heartbeats have to wait whenever this script has to wait for Redis
--   LIMIT          most leases to reclaim from one queue
--   LOST_OUTCOME   the outcome of a lost delivery (JSON on one line) with the placeholders %ATTEMPT% and %NOW%
--   OUTCOMES_KEEP  outcomes of one task to keep
--
-- Returns the ids that were reclaimed. Dead workers are forgotten in the same step, so it must be given all queues.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local limit = tonumber(LIMIT)
local dead, any_dead = {}, false
for _, token in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', SILENT_SINCE)) do
  dead[token], any_dead = true, true
end
local all, full = {}, false
for i = FIRST_KEY, #KEYS, KEY_WIDTH do
  local registry, queue = KEYS[i + STARTED], KEYS[i + QUEUE]
  local ended = redis.call('ZRANGEBYSCORE', registry, '(' .. FOREVER_SECONDS, now + FOREVER_SECONDS, 'LIMIT', 0, limit)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', registry, '-inf', now, 'LIMIT', 0, limit)) do
    local key = JOB_PREFIX .. string.match(member, '^[^:]*')
    local created_at, attempt = unpack(redis.call('HMGET', key, 'created_at', 'attempt'))
    if not created_at or attempt then
      ended[#ended + 1] = member
    end
  end
  if any_dead then
    -- Leases of dead workers may be anywhere in the registry, which only holds what is in flight.
    for _, member in ipairs(redis.call('ZRANGE', registry, 0, -1)) do
      if dead[string.match(member, ':(.*)$')] then
        ended[#ended + 1] = member
      end
    end
  end
  local reclaimed = 0
  for _, member in ipairs(ended) do
    if reclaimed == limit then
      full = true
      break
    end
    if redis.call('ZREM', registry, member) == 1 then
      local id = string.match(member, '^[^:]*')
      local key = JOB_PREFIX .. id
      local attempt, before, data = unpack(redis.call('HMGET', key, 'attempt', 'outcomes', 'data'))
      if data then
        local line = string.gsub(LOST_OUTCOME, '%%(%u+)%%', {ATTEMPT = attempt or '1', NOW = string.format('%.6f', now)})
        local outcomes = newest_lines((before or '') .. '\n' .. line, OUTCOMES_KEEP)
        redis.call('HSET', key, 'status', 'queued', 'outcomes', outcomes)
        redis.call('LPUSH', queue, id)
        reclaimed = reclaimed + 1
        all[#all + 1] = id
      else -- another program has deleted the job
        redis.call('HINCRBY', LEDGER, 'deleted:' .. string.sub(queue, #QUEUE_PREFIX + 1), 1)
      end
    end
  end
end
if not full then
  for token in pairs(dead) do
    redis.call('ZREM', WORKERS, token)
  end
end
return all
