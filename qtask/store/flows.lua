-- For other scripts: flows, whose tasks share limits. Only a flow with limits, a pause, a rest or waiting tasks has state;
-- the tasks of all others go into their queue at once.
--
-- A task of a flow with state waits in the sorted set WAITING_PREFIX .. name, by its due instant, until it is admitted to
-- its queue. From then on it holds a slot, until it is delivered, dead, cancelled, or waits for a retry; in an ordered
-- flow it keeps the slot for the retry. SLOTS_PREFIX .. name is a sorted set: the id by when it was admitted, and by when
-- it was claimed plus FOREVER_SECONDS. So a slot that is given back twice is given back once, and the size of the set is
-- what is in flight. Its scores are whole seconds, which Redis compares much faster, except in flows with a rate.
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
-- A flow may have a rule, which gives it limits that it does not have itself: `rule` in its hash is the pattern, and the hash
-- FLOW_RULES has the limits. A flow that has no limits but these leaves no key when it is idle; the next task, which names
-- the rule, brings them back.
--
-- FLOWS is a sorted set: each flow with state by the instant at which a scheduler has to look at it, or '+inf'.
--
-- A script that calls hold, enters, take_token or admit ends with finish_flows.
local flow_states, rule_limits, extras = {}, {}, {}
local admitted, looks = {}, {} -- by queue: ids that finish_flows adds to it; by flow: instants that it notes in FLOWS
local CLAIM_SHARE = 0.25 -- of the slack in which a claim is expected; the rest is for claims that come later
local ADMIT_LIMIT = 500 -- tasks of one flow in one script; Redis answers nobody else in between
local LONG_SECONDS = 660 -- more than the longest timeout and its margin
local TRIPS_KEEP_SECONDS = 600 -- for which an open circuit breaker is remembered while its flow has no tasks
local LOOK_AGAIN_SECONDS = 30 -- after which the slots of a flow in which tasks wait are compared with the jobs
local PART = 4000 -- arguments of one command, for which Lua's stack has room

-- The limits of a rule, or false if no rule has this pattern.
local function limits_of(rule)
  if rule_limits[rule] == nil then
    local limits = redis.call('HGET', FLOW_RULES, rule)
    rule_limits[rule] = limits and cjson.decode(limits)
  end
  return rule_limits[rule]
end

-- The state of a flow, or false if it has none.
local function flow_of(name)
  local flow = flow_states[name]
  if flow ~= nil then
    return flow
  end
  -- HGETALL costs less than HMGET: most flows have no state, and the others few fields.
  local values, read = redis.call('HGETALL', FLOW_PREFIX .. name), {}
  for i = 1, #values, 2 do
    read[values[i]] = values[i + 1]
  end
  if not read.made then
    flow_states[name] = false
    return false
  end
  local parallel, rate, per, burst, ordered = read.parallel, read.rate, read.per, read.burst, read.ordered == '1'
  local stays = (parallel or rate or ordered or read.paused) and true or false
  local default = read.rule and limits_of(read.rule)
  if default then
    parallel, ordered = parallel or default.parallel, ordered or default.ordered == '1'
    if not rate then
      rate, per, burst = default.rate, default.per, default.burst
    end
  end
  local has_limits = (parallel or rate or ordered or read.paused) and true or false
  local adapts = parallel == 'auto' and not ordered
  local share = (adapts or not has_limits) and tonumber(read.share) -- else it is of the time before the limits were set
  flow = {
    name = name,
    waiting = WAITING_PREFIX .. name,
    slots = SLOTS_PREFIX .. name,
    joining = {}, -- scores and members for its waiting set
    entered = {}, -- scores and ids for its slots
    ordered = ordered,
    parallel = ordered and 1 or tonumber(parallel) or share or (adapts and FIRST_PARALLEL or math.huge),
    adapts = adapts,
    has_limits = has_limits,
    stays = stays, -- its key, while it is idle
    rule = read.rule,
    paused = read.paused == '1',
    share = share,
    rest = tonumber(read.rest) or 0,
    trips = tonumber(read.trips) or 0,
    probe = read.probe,
    partial = tonumber(read.partial),
    tat = tonumber(read.tat) or 0,
  }
  if rate then
    flow.per = tonumber(per) or 1
    flow.grace = math.min(RATE_SLACK * flow.per, RATE_SLACK_SECONDS)
    flow.spacing = flow.per / tonumber(rate) * (1 + 2 * flow.grace / flow.per)
    flow.slack = ((tonumber(burst) or 1) - 1) * flow.spacing + flow.grace
    flow.window, flow.begun = tonumber(read.window), tonumber(read.begun) or 0
    flow.begun_before = tonumber(read.begun_before) or 0
  end
  flow_states[name] = flow
  return flow
end

-- What a job says of its flow, in its field extra: the name, its rank, whether its timeout adapts, and the rule of the flow.
-- A rank orders a task whose id the client chose among those whose ids QTask made, in the order of submission.
local function flow_in(extra)
  local read = extras[extra] -- most tasks of a flow have the same
  if not read then
    read = cjson.decode(extra)
    extras[extra] = read
  end
  return read.flow, read.rank, read.timed, read.rule
end

-- The field extra of a job that belongs to the flow of its destination.
local function extra_of(name)
  if not string.find(name, '["\\]') then
    return '{"flow":"' .. name .. '"}'
  end
  return '{"flow":' .. cjson.encode(name) .. '}'
end

-- The score of a slot that is taken now.
local function slot_score(flow, now)
  return flow.spacing and now or math.floor(now)
end

-- Whether a flow lets nothing begin now, however many slots are free. While its circuit breaker is half-open, only the probe
-- begins.
local function is_closed(flow, id, now)
  return flow.paused or flow.rest > now or (flow.trips > 0 and flow.probe ~= id)
end

-- Whether the delivery of a task may begin now; takes the token of a rate. `write_flow` must follow.
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
    flow.has_new_tokens = true
  end
  return true
end

-- Adds a task without a slot to those that wait in its flow; `due` is its score. `held` counts tasks by queue. `write_flow`
-- must follow.
local function hold(flow, id, rank, due, queue, held)
  local joining = flow.joining
  joining[#joining + 1] = due
  joining[#joining + 1] = rank and rank .. ':' .. id or id
  held[queue] = (held[queue] or 0) + 1
end

-- Writes what hold, enters and take_token have left. Returns whether tasks begin to wait of which none did before.
local function write_flow(flow)
  local begins_to_wait = false
  if #flow.entered > 0 then
    redis.call('ZADD', flow.slots, unpack(flow.entered))
    flow.entered, flow.room = {}, nil
  end
  if flow.has_new_tokens then
    flow.has_new_tokens = false
    redis.call('HSET', FLOW_PREFIX .. flow.name, 'tat', string.format('%.6f', flow.tat), 'window', flow.window, 'begun',
      flow.begun, 'begun_before', flow.begun_before)
  end
  if #flow.joining > 0 then
    begins_to_wait = redis.call('EXISTS', flow.waiting) == 0
    redis.call('ZADD', flow.waiting, unpack(flow.joining))
    flow.joining, flow.room = {}, nil
  end
  return begins_to_wait
end

-- As flow_of, for a task that is to be delivered: gives the flow the rule that the task names, if it has none, or one that is
-- less specific or does not exist any more.
local function flow_by_rule(name, rule, now)
  local flow = flow_of(name)
  if rule and (not flow or flow.rule ~= rule) and limits_of(rule) then
    local other = flow and flow.rule
    if not other or not limits_of(other) or rule == name or (other ~= name and #rule > #other) then
      if flow then
        write_flow(flow)
      end
      redis.call('HSET', FLOW_PREFIX .. name, 'rule', rule, 'made', string.format('%.6f', now))
      redis.call('ZADD', FLOWS, 'NX', '+inf', name)
      flow_states[name] = nil
      flow = flow_of(name)
    end
  end
  return flow
end

-- Frees the slots of tasks that other programs have deleted or moved. Looks at those that were admitted, or claimed, long
-- ago. Returns how many it has freed.
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

-- How many tasks of a flow may be admitted now, if `used` of its slots are taken; and how many of its tokens are promised to
-- tasks that were admitted before.
local function room_in(flow, used, now)
  local room, promised = flow.parallel - used, 0
  if flow.paused or flow.rest > now then
    return 0, 0
  end
  if flow.trips > 0 then
    -- The breaker is half-open: one task is delivered, and its outcome decides.
    if flow.probe and not redis.call('ZSCORE', flow.slots, flow.probe) then
      flow.probe = nil -- it was cancelled, or deleted by another program
    end
    room = math.min(room, flow.probe and 0 or 1)
  end
  if flow.spacing then
    promised = used > 0 and redis.call('ZCOUNT', flow.slots, '-inf', FOREVER_SECONDS) or 0
    local ahead = now + flow.slack - math.max(flow.tat, now)
    local tokens = ahead < 0 and 0 or math.floor(ahead / flow.spacing + 1e-6) + 1
    room = math.min(room, tokens - promised)
  end
  return room, promised
end

-- Whether a task that is due may go into its queue at once: no other waits in its flow, and there is room. It takes a slot.
-- `write_flow` must follow.
local function enters(flow, id, now)
  if flow.ordered or flow.trips > 0 or #flow.joining > 0 then
    return false -- these go through the waiting set, in order
  end
  if not flow.room then
    local waits = redis.call('EXISTS', flow.waiting) == 1
    flow.room = waits and 0 or room_in(flow, flow.parallel < math.huge and redis.call('ZCARD', flow.slots) or 1, now)
  end
  if flow.room < 1 then
    return false
  end
  flow.room = flow.room - 1
  flow.entered[#flow.entered + 1] = slot_score(flow, now)
  flow.entered[#flow.entered + 1] = id
  return true
end

-- Moves the first tasks that wait in a flow to those that finish_flows adds to their queues. Returns how many, and how many do
-- not wait any more. `held` counts tasks by queue.
local function admit_first(flow, count, now, held)
  local members = redis.call('ZPOPMIN', flow.waiting, count)
  local slots, deleted = {}, 0
  for i = 1, #members, 2 do
    local id = string.match(members[i], '[^:]*$')
    local key = JOB_PREFIX .. id
    local origin = redis.call('HGET', key, 'origin')
    if origin then
      redis.call('HSET', key, 'status', 'queued')
      admitted[origin] = admitted[origin] or {}
      table.insert(admitted[origin], id)
      held[origin] = (held[origin] or 0) - 1
      slots[#slots + 1] = slot_score(flow, now)
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
  if deleted > 0 then
    redis.call('HINCRBY', LEDGER, 'held:', -deleted)
    redis.call('HINCRBY', LEDGER, 'deleted:', deleted)
  end
  return #slots / 2, #members / 2
end

local function forget_flow(flow)
  redis.call('UNLINK', FLOW_PREFIX .. flow.name)
  redis.call('ZREM', FLOWS, flow.name)
  looks[flow.name] = nil
  if redis.call('SREM', FLOW_DESTINATIONS, flow.name) == 1 then
    redis.call('INCR', FLOW_VERSION)
  end
  flow_states[flow.name] = false
end

-- The next look at a flow in which no task waits. It is forgotten if it has no limits of its own and nothing else to remember.
local function look_at_idle(flow, now, is_look)
  local forget_at = flow.trips > 0 and flow.rest + TRIPS_KEEP_SECONDS or flow.rest
  if forget_at <= now and flow.stays then
    if is_look then
      looks[flow.name] = math.huge
    end
    return math.huge
  end
  if flow.spacing and not flow.stays then
    forget_at = math.max(forget_at, flow.tat) -- until then a new flow of this name would allow more than the rate
  end
  if redis.call('EXISTS', flow.slots) == 1 then
    if is_look then
      looks[flow.name] = math.huge
    end
    return math.huge
  elseif forget_at > now then
    looks[flow.name] = forget_at
    return forget_at
  end
  forget_flow(flow)
  return math.huge
end

-- Whether a claim of a flow with a rate comes so long after the admission that the look that was planned then is too early.
-- Then the claim plans another one. Where the spacing is shorter than the slack, it may always be too early.
local function is_late(flow, admitted_at, now)
  return flow.spacing and (flow.spacing < flow.grace or now - admitted_at >= CLAIM_SHARE * flow.grace)
end

-- When the last of the tasks that are queued was admitted.
local function last_admitted(flow)
  return tonumber(redis.call('ZREVRANGEBYSCORE', flow.slots, FOREVER_SECONDS, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]) or 0
end

-- Admits the tasks of a flow that may begin, and notes when to look at the flow again. `held` counts tasks by queue. `is_look`
-- is true for a look at a flow whose instant has come. Returns the instant of the next look.
local function admit(flow, now, held, is_look)
  local have_entered = #flow.entered > 0
  local begins_to_wait = write_flow(flow)
  local left = redis.call('ZCARD', flow.waiting)
  if left == 0 then
    return look_at_idle(flow, now, is_look)
  end
  local used = redis.call('ZCARD', flow.slots)
  local room, promised = room_in(flow, used, now)
  if is_look and room < 1 and used > 0 and (used >= flow.parallel or promised > 0 or flow.trips > 0) then
    used = used - free_lost_slots(flow, now)
    room, promised = room_in(flow, used, now)
  end
  local is_tied = flow.partial and first_due(flow) >= flow.partial
  local count = is_tied and 0 or math.max(0, math.min(left, ADMIT_LIMIT, room))
  if count > 0 then
    local taken, gone = admit_first(flow, count, now, held)
    used, promised, left = used + taken, promised + taken, left - gone
    if left == 0 then
      return look_at_idle(flow, now, is_look)
    end
  end
  local look
  if flow.paused then
    look = math.huge -- the end of the pause is a look
  elseif flow.rest > now then
    look = flow.rest
  elseif count == ADMIT_LIMIT and room > count then
    look = now
  elseif flow.spacing and used < flow.parallel and not is_tied and not (flow.trips > 0 and flow.probe) and
      (count > 0 or have_entered or promised == 0) then
    -- The next token after those of the tasks that are admitted now, if these are claimed soon; see is_late.
    look = math.max(flow.tat, now) + promised * flow.spacing - flow.slack + CLAIM_SHARE * flow.grace
    look = math.min(math.max(look, now), now + LOOK_AGAIN_SECONDS)
  elseif is_look and flow.spacing and promised > 0 and not is_late(flow, last_admitted(flow), now) then
    look = now + CLAIM_SHARE * flow.grace -- after that its claim is late
  elseif is_look or begins_to_wait then
    look = now + LOOK_AGAIN_SECONDS
  else
    return math.huge -- the look that was noted before is still to come
  end
  looks[flow.name] = look
  return look
end

-- Wakes the schedulers if a look is earlier than what they wait for. `before` is the head of FLOWS from before.
local function wake_for(look, before)
  if look < before then
    redis.call('PUBLISH', WAKE, string.format('%.6f', look))
  end
end

-- Calls a command with a key and many further arguments.
local function call_in_parts(command, key, arguments)
  for first = 1, #arguments, PART do
    redis.call(command, key, unpack(arguments, first, math.min(first + PART - 1, #arguments)))
  end
end

-- Writes what `admit` has left: the queues of the tasks that were admitted, and when to look at the flows again. Adds to the
-- ledger what `hold` and `admit` have counted.
local function finish_flows(held)
  for origin, ids in pairs(admitted) do
    redis.call('SADD', QUEUES, QUEUE_PREFIX .. origin)
    call_in_parts('RPUSH', QUEUE_PREFIX .. origin, ids)
  end
  local scores = {}
  for name, look in pairs(looks) do
    scores[#scores + 1] = look == math.huge and '+inf' or string.format('%.6f', look)
    scores[#scores + 1] = name
  end
  call_in_parts('ZADD', FLOWS, scores)
  for queue, count in pairs(held) do
    if count ~= 0 then
      redis.call('HINCRBY', LEDGER, 'held:' .. queue, count)
    end
  end
end
