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
-- `begun` and `begun_before` count the deliveries that began in the current span of `per` seconds and in the one before it,
-- to show how much of the rate is used; `window` is the number of the current span.
--
-- FLOWS is a sorted set: each flow with state by the instant at which a scheduler has to look at it, or '+inf'.
local flow_states, known_queues = {}, {}
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
  local pairs_of_fields = redis.call('HGETALL', FLOW_PREFIX .. name)
  if #pairs_of_fields == 0 then
    flow_states[name] = false
    return false
  end
  local fields = {}
  for i = 1, #pairs_of_fields, 2 do
    fields[pairs_of_fields[i]] = pairs_of_fields[i + 1]
  end
  local ordered = fields.ordered == '1'
  flow = {
    name = name,
    waiting = WAITING_PREFIX .. name,
    slots = SLOTS_PREFIX .. name,
    joining = {},
    ordered = ordered,
    parallel = ordered and 1 or tonumber(fields.parallel) or tonumber(fields.share)
      or (fields.parallel == 'auto' and FIRST_PARALLEL or math.huge),
    adapts = fields.parallel == 'auto' and not ordered,
    has_limits = (fields.parallel or fields.rate or ordered or fields.paused) and true or false,
    paused = fields.paused == '1',
    share = tonumber(fields.share),
    rest = tonumber(fields.rest) or 0,
    trips = tonumber(fields.trips) or 0,
    probe = fields.probe,
    partial = tonumber(fields.partial),
    tat = tonumber(fields.tat) or 0,
  }
  if fields.rate then
    local per = tonumber(fields.per) or 1
    local slack = math.min(RATE_SLACK * per, RATE_SLACK_SECONDS)
    flow.per = per
    flow.window, flow.begun = tonumber(fields.window), tonumber(fields.begun) or 0
    flow.begun_before = tonumber(fields.begun_before) or 0
    flow.spacing = per / tonumber(fields.rate) * (1 + 2 * slack / per)
    flow.slack = ((tonumber(fields.burst) or 1) - 1) * flow.spacing + slack
  end
  flow_states[name] = flow
  return flow
end

-- The name of the flow that a job says it belongs to, its rank, and whether its timeout adapts; all from its field extra. A
-- rank orders a task whose id the client chose among those whose ids QTask made, in the order of submission.
local function flow_in(extra)
  local name, rest = string.match(extra, '^{"flow":"([^"\\]*)"(.*)$')
  if name and rest == '}' then
    return name
  elseif name then -- decoding is slow
    return name, string.match(rest, '"rank":"([^"\\]*)"'), string.find(rest, '"timed":true', 1, true) ~= nil
  end
  local read = cjson.decode(extra)
  return read.flow, read.rank, read.timed
end

-- The field extra of a job that belongs to the flow of its destination.
local function extra_of(name)
  if not string.find(name, '["\\]') then
    return '{"flow":"' .. name .. '"}'
  end
  return '{"flow":' .. cjson.encode(name) .. '}'
end

-- Whether a flow lets nothing begin now, however many slots are free. While its circuit breaker is half open, only the probe
-- begins.
local function is_closed(flow, id, now)
  return flow.paused or flow.rest > now or (flow.trips > 0 and flow.probe ~= id)
end

-- Whether the delivery of a task may begin now; takes the token of a rate. `admit` must follow.
local function take_token(flow, id, now)
  if is_closed(flow, id, now) then
    return false
  end
  if flow.spacing then
    if now < flow.tat - flow.slack then
      return false
    end
    flow.tat = math.max(flow.tat, now) + flow.spacing
    local window = math.floor(now / flow.per)
    if window ~= flow.window then
      flow.begun_before = window - 1 == flow.window and flow.begun or 0
      flow.window, flow.begun = window, 0
    end
    flow.begun = flow.begun + 1
    flow.has_new_tokens = true -- `admit` stores them
  end
  return true
end

-- Adds a task without a slot to those that wait in its flow; `due` is its score. `admit`, which must follow, stores it.
-- `held` counts tasks by queue.
local function hold(flow, id, rank, due, queue, held)
  local joining = flow.joining
  joining[#joining + 1] = due
  joining[#joining + 1] = rank and rank .. ':' .. id or id
  held[queue] = (held[queue] or 0) + 1
end

-- Frees the slots of tasks that other programs have deleted or moved. Looks at those that were admitted, or claimed, long
-- ago, and notes when it has looked at one.
local function free_lost_slots(flow, now)
  local old = redis.call('ZRANGEBYSCORE', flow.slots, '-inf', now - LOOK_AGAIN_SECONDS, 'LIMIT', 0, ADMIT_LIMIT)
  local claimed = redis.call('ZRANGEBYSCORE', flow.slots, FOREVER_SECONDS, FOREVER_SECONDS + now - LONG_SECONDS, 'LIMIT', 0,
    ADMIT_LIMIT)
  for instant, ids in pairs({[now] = old, [now + FOREVER_SECONDS] = claimed}) do
    for _, id in ipairs(ids) do
      local status = redis.call('HGET', JOB_PREFIX .. id, 'status')
      local waits_for_retry = flow.ordered and redis.call('ZSCORE', SCHEDULE, id)
      if status ~= 'queued' and status ~= 'started' and not waits_for_retry then
        redis.call('ZREM', flow.slots, id)
      elseif not flow.spacing then -- else the instant tells whether it has been claimed
        redis.call('ZADD', flow.slots, 'XX', instant, id)
      end
    end
  end
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

-- How many tasks of a flow may be admitted now, where `used` of its slots are taken; and how many of its tokens are promised to
-- tasks that were admitted before.
local function room_in(flow, used, now)
  local room, promised = flow.parallel - used, 0
  if flow.paused or flow.rest > now then
    return 0, 0
  end
  if flow.trips > 0 then
    -- The breaker is half open: one task is delivered, and its outcome decides.
    if flow.probe and not redis.call('ZSCORE', flow.slots, flow.probe) then
      flow.probe = nil -- it was cancelled, or deleted by another program
    end
    room = math.min(room, flow.probe and 0 or 1)
  end
  if flow.spacing then
    promised = redis.call('ZCOUNT', flow.slots, '-inf', FOREVER_SECONDS)
    local ahead = now + flow.slack - math.max(flow.tat, now)
    local tokens = ahead < 0 and 0 or math.floor(ahead / flow.spacing + 1e-6) + 1
    room = math.min(room, tokens - promised)
  end
  return room, promised
end

-- Whether a task that is due may go into its queue at once: no other waits in its flow, and there is room. `take_slots` must
-- follow.
local function enters(flow, id, now)
  if flow.ordered or flow.trips > 0 or #flow.joining > 0 then
    return false -- these go through the waiting set, in order
  end
  if not flow.room then
    local waits = redis.call('EXISTS', flow.waiting) == 1
    flow.room = waits and 0 or room_in(flow, redis.call('ZCARD', flow.slots), now)
    flow.entered = {}
  end
  if flow.room < 1 then
    return false
  end
  flow.room = flow.room - 1
  flow.entered[#flow.entered + 1] = now
  flow.entered[#flow.entered + 1] = id
  return true
end

-- Stores the slots of the tasks for which `enters` was true.
local function take_slots(flow)
  if flow.entered and #flow.entered > 0 then
    redis.call('ZADD', flow.slots, unpack(flow.entered))
    flow.entered, flow.room = nil, nil
  end
end

-- Moves the first tasks that wait in a flow to the ends of their queues. Returns how many it has admitted, and how many do not
-- wait any more. `held` counts tasks
-- by queue.
local function admit_first(flow, count, now, held)
  local members = redis.call('ZPOPMIN', flow.waiting, count)
  local by_queue, slots, deleted = {}, {}, 0
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
  return #slots / 2, #members / 2
end

local function forget_flow(flow)
  redis.call('UNLINK', FLOW_PREFIX .. flow.name)
  redis.call('ZREM', FLOWS, flow.name)
  if redis.call('SREM', FLOW_DESTINATIONS, flow.name) == 1 then
    redis.call('INCR', FLOW_VERSION)
  end
  flow_states[flow.name] = false
end

-- Moves the tasks of a flow that may begin from its waiting set to the ends of their queues, and notes when to look at the
-- flow again. `held` counts tasks by queue. `looks` is true for a look at a flow whose instant has come. Returns the instant of
-- the next look.
local function admit(flow, now, held, looks)
  take_slots(flow)
  if flow.has_new_tokens then
    flow.has_new_tokens = false
    redis.call('HSET', FLOW_PREFIX .. flow.name, 'tat', string.format('%.6f', flow.tat), 'window', flow.window, 'begun',
      flow.begun, 'begun_before', flow.begun_before)
  end
  local left = redis.call('ZCARD', flow.waiting)
  local begins_to_wait = left == 0 and #flow.joining > 0
  if #flow.joining > 0 then
    left = left + redis.call('ZADD', flow.waiting, unpack(flow.joining))
    flow.joining = {}
  end
  if left == 0 then
    local forget_at = flow.trips > 0 and flow.rest + TRIPS_KEEP_SECONDS or flow.rest
    if forget_at > now then
      redis.call('ZADD', FLOWS, string.format('%.6f', forget_at), flow.name)
      return forget_at
    elseif not flow.has_limits and redis.call('EXISTS', flow.slots) == 0 then
      forget_flow(flow)
    elseif looks then
      redis.call('ZADD', FLOWS, '+inf', flow.name)
    end
    return math.huge
  end
  local used = redis.call('ZCARD', flow.slots)
  local room, promised = room_in(flow, used, now)
  local limited = flow.partial and first_due(flow) >= flow.partial
  local count = limited and 0 or math.min(left, ADMIT_LIMIT, room)
  if count > 0 then
    local admitted, popped = admit_first(flow, count, now, held)
    used, promised, left = used + admitted, promised + admitted, left - popped
    if left == 0 then
      return admit(flow, now, held, looks)
    end
  end
  local look = math.huge
  if flow.paused or flow.partial then
    look = math.huge -- that will end with a look
  elseif flow.rest > now then
    look = flow.rest
  elseif count == ADMIT_LIMIT and room > count then
    look = now
  elseif flow.spacing and flow.tat > now then
    look = flow.tat - flow.slack + promised * flow.spacing -- else the claims of those admitted will look
  end
  if look < math.huge then
    look = math.max(look, now)
  elseif looks or begins_to_wait then
    look = flow.paused and math.huge or now + LOOK_AGAIN_SECONDS
  else
    return math.huge -- the look that was noted when tasks began to wait is still to come
  end
  look = flow.paused and look or math.min(look, now + LOOK_AGAIN_SECONDS)
  redis.call('ZADD', FLOWS, look == math.huge and '+inf' or string.format('%.6f', look), flow.name)
  return look
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
