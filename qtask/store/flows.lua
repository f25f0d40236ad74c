-- For other scripts: flows, whose tasks share limits. Only a flow with limits, a pause, a rest or waiting tasks has state;
-- the tasks of all others go into their queue at once.
--
-- A task of a flow with state waits in the sorted set WAITING_PREFIX .. name, by its due instant, until it is admitted to
-- its queue. From then on it holds a slot, until it is delivered, dead, cancelled, or waits for a retry; in an ordered
-- flow it keeps the slot for the retry. SLOTS_PREFIX .. name is a sorted set: the id by when it was admitted, and when it
-- was claimed plus FOREVER_SECONDS. So a slot that is given back twice is given back once, and the size of the set is what
-- is in flight.
--
-- A rate is GCRA (ITU-T I.371): `tat` is the instant at which the next delivery would begin if all were evenly spaced. The
-- token is taken when a task is claimed, since a delivery begins then. Admission only looks how many tokens there are. A
-- claim that comes a little before its instant is in time (RATE_SLACK of the span), so that the way from admission to
-- claim takes nothing off the rate; the spacing is longer by twice as much, so that no window has too many all the same:
-- `burst` + n deliveries take at least n spacings less the slack, so rate + burst of them take more than the span, by
-- as much as the slack.
--
-- FLOWS is a sorted set: each flow with state by the instant at which a scheduler has to look at it, or '+inf'.
local flow_states, known_queues = {}, {}
local RATE_SLACK, RATE_SLACK_LIMIT = 0.01, 0.05
local CLAIM_SHARE = 0.25 -- of the slack in which a claim is expected; the rest is for claims that come later
local ADMIT_LIMIT = 500 -- tasks of one flow in one script; Redis answers nobody else in between
local LONG_SECONDS = 660 -- more than the longest timeout and its margin
local TRIPS_KEEP_SECONDS = 600 -- for which an open circuit breaker is remembered while its flow has no tasks
local LOOK_AGAIN_SECONDS = 30 -- after which the slots of a flow in which tasks wait are compared with the jobs

-- The state of a flow, or false where it has none.
local function flow_of(name)
  local flow = flow_states[name]
  if flow ~= nil then
    return flow
  end
  local made, parallel, share, rate, per, burst, ordered, paused, rest, tat, trips, probe, partial = unpack(redis.call('HMGET',
    FLOW_PREFIX .. name, 'made', 'parallel', 'share', 'rate', 'per', 'burst', 'ordered', 'paused', 'rest', 'tat', 'trips',
    'probe', 'partial'))
  local has_limits = (parallel or rate or ordered == '1' or paused) and true or false
  flow = made and {
    name = name,
    waiting = WAITING_PREFIX .. name,
    slots = SLOTS_PREFIX .. name,
    ordered = ordered == '1',
    parallel = ordered == '1' and 1 or tonumber(parallel) or not has_limits and tonumber(share) or math.huge,
    has_limits = has_limits,
    paused = paused == '1',
    share = tonumber(share),
    rest = tonumber(rest) or 0,
    trips = tonumber(trips) or 0,
    probe = probe,
    partial = tonumber(partial),
    tat = tonumber(tat) or 0,
  }
  if made and rate then
    per = tonumber(per) or 1
    local slack = math.min(RATE_SLACK * per, RATE_SLACK_LIMIT)
    flow.spacing = per / tonumber(rate) * (1 + 2 * slack / per)
    flow.slack = ((tonumber(burst) or 1) - 1) * flow.spacing + slack
    flow.grace = slack
  end
  flow_states[name] = flow
  return flow
end

-- The name of the flow that a job says it belongs to, and its rank; both from its field extra. A rank orders a task whose
-- id the client chose among those whose ids QTask made, in the order of submission.
local function flow_in(extra)
  local read = cjson.decode(extra)
  return read.flow, read.rank
end

-- Whether a flow lets nothing begin now, however many slots are free. While its circuit breaker is half open, only the probe
-- begins.
local function is_closed(flow, id, now)
  return flow.paused or flow.rest > now or (flow.trips > 0 and flow.probe ~= id)
end

-- Whether the delivery of a task may begin now; takes the token of a rate.
local function take_token(flow, id, now)
  if is_closed(flow, id, now) then
    return false
  end
  if flow.spacing then
    if now < flow.tat - flow.slack then
      return false
    end
    flow.tat = math.max(flow.tat, now) + flow.spacing
    redis.call('HSET', FLOW_PREFIX .. flow.name, 'tat', string.format('%.6f', flow.tat))
  end
  return true
end

-- Has a task wait in its flow; `due` is its score. Its slot, if it has one, is free. `held` counts tasks by queue.
local function hold(flow, id, rank, due, queue, held)
  redis.call('ZREM', flow.slots, id)
  redis.call('ZADD', flow.waiting, due, rank and rank .. ':' .. id or id)
  held[queue] = (held[queue] or 0) + 1
end

-- Frees the slots of tasks that other programs have deleted or moved. Looks at those that were admitted, or claimed, long
-- ago. Returns how many.
local function free_lost_slots(flow, now)
  local old = redis.call('ZRANGEBYSCORE', flow.slots, '-inf', now - LOOK_AGAIN_SECONDS, 'LIMIT', 0, ADMIT_LIMIT)
  local claimed = redis.call('ZRANGEBYSCORE', flow.slots, FOREVER_SECONDS, FOREVER_SECONDS + now - LONG_SECONDS, 'LIMIT', 0,
    ADMIT_LIMIT)
  local freed = 0
  for _, ids in ipairs({old, claimed}) do
    for _, id in ipairs(ids) do
      local status = redis.call('HGET', JOB_PREFIX .. id, 'status')
      local waits_for_retry = flow.ordered and redis.call('ZSCORE', SCHEDULE, id)
      if status ~= 'queued' and status ~= 'started' and not waits_for_retry then
        freed = freed + redis.call('ZREM', flow.slots, id)
      end
    end
  end
  return freed
end

local function first_due(flow)
  return tonumber(redis.call('ZRANGE', flow.waiting, 0, 0, 'WITHSCORES')[2])
end

-- Several tasks of an ordered flow may be due at the same instant, and only some of them be released yet. Then those of this
-- instant wait for the rest; `tie` is that instant, or nil.
local function set_partial(flow, tie)
  if flow.ordered and flow.partial ~= tie then
    flow.partial = tie
    if tie then
      redis.call('HSET', FLOW_PREFIX .. flow.name, 'partial', string.format('%.6f', tie))
    else
      redis.call('HDEL', FLOW_PREFIX .. flow.name, 'partial')
    end
  end
end

-- Moves the tasks of a flow that may begin from its waiting set to the ends of their queues, and notes when to look at the
-- flow again. `held` counts tasks by queue. `is_look` says that this is such a look. Returns the instant of the next one.
local function admit(flow, now, held, is_look)
  local left = redis.call('ZCARD', flow.waiting)
  local count, look = math.min(left, ADMIT_LIMIT), math.huge
  local used = redis.call('ZCARD', flow.slots)
  local tokens_used = flow.spacing and used > 0 and redis.call('ZCOUNT', flow.slots, '-inf', FOREVER_SECONDS) or 0
  if is_look and used > 0 and (used >= flow.parallel or tokens_used > 0) then
    used = used - free_lost_slots(flow, now)
  end
  if flow.paused or (flow.partial and left > 0 and first_due(flow) >= flow.partial) then
    count = 0
  elseif flow.rest > now then
    count, look = 0, flow.rest
  elseif left > 0 then
    count = math.min(count, flow.parallel - used)
    if flow.trips > 0 then
      -- The breaker is half open: one task is delivered, and its outcome decides.
      if flow.probe and not redis.call('ZSCORE', flow.slots, flow.probe) then
        flow.probe = nil -- it was cancelled, or deleted by another program
      end
      count = math.min(count, flow.probe and 0 or 1)
    end
    if flow.spacing then
      local ahead = now + flow.slack - math.max(flow.tat, now)
      local tokens = ahead < 0 and 0 or math.floor(ahead / flow.spacing + 1e-6) + 1
      count = math.min(count, tokens - tokens_used)
    end
  end
  if count > 0 then
    local members = redis.call('ZPOPMIN', flow.waiting, count)
    local by_queue, slots, deleted = {}, {}, 0
    left = left - #members / 2
    for i = 1, #members, 2 do
      local id = string.match(members[i], '[^:]*$')
      local key = JOB_PREFIX .. id
      local origin = redis.call('HGET', key, 'origin')
      if origin then
        redis.call('HSET', key, 'status', 'queued')
        by_queue[origin] = by_queue[origin] or {}
        table.insert(by_queue[origin], id)
        slots[#slots + 1] = now
        slots[#slots + 1] = id
      else
        deleted = deleted + 1 -- by another program, while it waited
      end
    end
    if #slots > 0 then
      redis.call('ZADD', flow.slots, unpack(slots))
      if flow.trips > 0 then
        flow.probe = slots[2]
        redis.call('HSET', FLOW_PREFIX .. flow.name, 'probe', flow.probe)
      end
    end
    for origin, ids in pairs(by_queue) do
      if not known_queues[origin] then
        known_queues[origin] = true
        redis.call('SADD', QUEUES, QUEUE_PREFIX .. origin)
      end
      redis.call('RPUSH', QUEUE_PREFIX .. origin, unpack(ids))
      held[origin] = (held[origin] or 0) - #ids
    end
    if deleted > 0 then
      redis.call('HINCRBY', LEDGER, 'held:', -deleted)
      redis.call('HINCRBY', LEDGER, 'deleted:', deleted)
    end
    used, tokens_used = used + #slots / 2, tokens_used + #slots / 2
  end
  if left == 0 then
    local idle_since = flow.trips > 0 and flow.rest + TRIPS_KEEP_SECONDS or flow.rest
    if used == 0 and not flow.has_limits and idle_since <= now then
      redis.call('UNLINK', FLOW_PREFIX .. flow.name)
      redis.call('ZREM', FLOWS, flow.name)
      if redis.call('SREM', FLOW_DESTINATIONS, flow.name) == 1 then
        redis.call('INCR', FLOW_VERSION)
      end
      flow_states[flow.name] = false
      return math.huge
    elseif look == math.huge and flow.trips > 0 and not flow.has_limits then
      look = math.max(idle_since, now + LOOK_AGAIN_SECONDS)
    end
  elseif look == math.huge and not flow.paused and not flow.partial then
    if count == ADMIT_LIMIT and used < flow.parallel then
      look = now
    elseif flow.spacing and used < flow.parallel and not (flow.trips > 0 and flow.probe) and
        (count > 0 or tokens_used == 0) then
      -- The next token after those of the tasks that are admitted now, if these are claimed soon; see is_late.
      look = math.max(flow.tat, now) + tokens_used * flow.spacing - flow.slack + CLAIM_SHARE * flow.grace
    end
    look = math.min(math.max(look, now), now + LOOK_AGAIN_SECONDS)
  end
  redis.call('ZADD', FLOWS, look == math.huge and '+inf' or string.format('%.6f', look), flow.name)
  return look
end

-- Whether a claim of a flow with a rate comes so long after the admission that the look that was planned then is too early.
-- Then the claim plans another one.
local function is_late(flow, admitted, now)
  return flow.spacing and now - admitted >= CLAIM_SHARE * flow.grace
end

-- Wakes the schedulers where a look is earlier than what they wait for. `before` is the head of FLOWS from before.
local function wake_for(look, before)
  if look < before then
    redis.call('PUBLISH', WAKE, string.format('%.6f', look))
  end
end

-- Adds what `hold` and `admit` have counted to the ledger.
local function count_held(held)
  for queue, count in pairs(held) do
    if count ~= 0 then
      redis.call('HINCRBY', LEDGER, 'held:' .. queue, count)
    end
  end
end
