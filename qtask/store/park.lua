-- Has tasks that a worker has claimed wait in a flow. Their attempt does not count: it never began. Those of the same flow
-- that are in flight hold slots from now on.
-- Needs flows.lua.
-- Needs admission.lua.
-- Needs note_destination.lua.
--
-- KEYS (ParkKeys in flows.py)
--   STARTED  registry of the queue
--   QUEUES   set of queue keys
--   FLOWS    flows by the instant of the next look (sorted set; see flows.lua)
--   LEDGER   hash
-- ARGV (ParkArguments)
--   TOKEN       of the worker
--   QUEUE_NAME  name of the queue
--   FLOW_NAME   name of the flow
--   EXTRA       the field extra of a job that has none, also of those in flight
--   IN_FLIGHT   how many of the ids are of tasks in flight, which come first
-- then the ids
--
-- Returns how many tasks wait in the flow now that did not before.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local key = FLOW_PREFIX .. FLOW_NAME
local flow = flow_of(FLOW_NAME)
if not flow then
  redis.call('HSET', key, 'made', string.format('%.6f', now))
  redis.call('ZADD', FLOWS, 'NX', '+inf', FLOW_NAME)
  flow_states[FLOW_NAME] = nil
  flow = flow_of(FLOW_NAME)
end
local held, parked = {}, 0
for position = 0, #ARGV - FIRST do
  local id = ARGV[FIRST + position]
  local lease = id .. ':' .. TOKEN
  if position < tonumber(IN_FLIGHT) then
    if redis.call('ZSCORE', STARTED, lease) then
      if redis.call('ZADD', flow.slots, 'NX', math.floor(now) + FOREVER_SECONDS, id) == 1 then
        redis.call('HSETNX', JOB_PREFIX .. id, 'extra', EXTRA) -- so that whatever ends it frees the slot
      end
    end
  elseif redis.call('ZREM', STARTED, lease) == 1 then
    local job = JOB_PREFIX .. id
    local data, extra, due = unpack(redis.call('HMGET', job, 'data', 'extra', 'due'))
    if data then
      local rank
      if extra then
        local _
        _, rank = flow_in(extra)
      else
        redis.call('HSET', job, 'extra', EXTRA)
        note_destination(FLOW_NAME)
      end
      redis.call('HSET', job, 'status', 'deferred')
      redis.call('HINCRBY', job, 'attempt', -1)
      redis.call('ZREM', flow.slots, id)
      hold(flow, id, rank, due or now, QUEUE_NAME, held)
      parked = parked + 1
    else
      redis.call('HINCRBY', LEDGER, 'deleted:' .. QUEUE_NAME, 1) -- by another program
    end
  end
end
if not flow.has_limits then
  -- No more of it than are in flight now, until deliveries succeed; see flow_outcomes.lua.
  flow.share = math.max(1, redis.call('ZCARD', flow.slots))
  flow.parallel = flow.ordered and 1 or flow.share
  redis.call('HSET', key, 'share', flow.share)
end
admit(flow, now, held)
finish_flows(held)
return parked
