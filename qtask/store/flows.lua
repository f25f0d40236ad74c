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
