-- Counts a delivery that a stock RQ worker begins; QTask's own workers count theirs when they claim.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
-- Needs requeued.lua.
-- Needs flows.lua.
-- Needs admission.lua.
-- Needs timeout_of.lua.
--
-- KEYS (BeginKeys in stock_delivery.py)
--   JOB            hash
--   FAILED         registry of its queue
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua)
--   SCHEDULE       sorted set
--   FLOWS          flows by the instant of the next look (sorted set; see flows.lua)
--   LEDGER         hash
--   QUEUES         set of queue keys
-- ARGV (BeginArguments)
--   ID             of the task
--   QUEUE_NAME     name of its queue
--   OUTCOMES_KEEP  outcomes to keep in the history
--   DESTINATION    name of the flow of a task that names none
--   EXTRA          the field extra of such a task
--
-- Returns (Begun) NOW in Unix seconds, ATTEMPT and DUE as in claim.lua, the FLOW_NAME of its flow, '' for none,
-- TIMED, which is nil unless its timeout adapts: the seconds, '' if they are not known,
-- MAY_BEGIN, which is 0 where that flow has reached its limits since the task was queued, and PAUSED, which is 1 where the
-- queue is paused; then MAY_BEGIN is 0 as well.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local error, due, extra = unpack(redis.call('HMGET', JOB, 'exc_info', 'due', 'extra'))
local name, _, timed, rule = DESTINATION, nil, nil, nil
if extra then
  name, _, timed, rule = flow_in(extra)
  name = name or DESTINATION
end
local flow = flow_by_rule(name, rule, now)
local paused = redis.call('SISMEMBER', PAUSED_QUEUES, QUEUE_NAME)
local may_begin = paused == 0 and (not flow or (redis.call('ZSCORE', flow.slots, ID) and take_token(flow, ID, now)))
local has_history = error == ''
if error and not has_history then
  _, has_history = requeued(ID, JOB, FAILED, STOCK_RETRIES, SCHEDULE, OUTCOMES_KEEP)
end
if flow and not may_begin and not extra then
  redis.call('HSET', JOB, 'extra', EXTRA) -- so that it waits in its flow
end
if flow then
  if may_begin then
    redis.call('ZADD', flow.slots, math.floor(now) + FOREVER_SECONDS, ID)
  elseif not flow.ordered then
    redis.call('ZREM', flow.slots, ID) -- until it is released again; in an ordered flow no other may begin meanwhile
  end
  admit_from({flow}, now, {})
end
local attempt = redis.call('HINCRBY', JOB, 'attempt', 1)
return {
  [NOW] = string.format('%.6f', now),
  [ATTEMPT] = has_history and -attempt or attempt,
  [DUE] = due or '',
  [FLOW_NAME] = (flow or timed) and name or '',
  [TIMED] = timed and timeout_of(name) or false,
  [MAY_BEGIN] = may_begin and 1 or 0,
  [PAUSED] = paused,
}
