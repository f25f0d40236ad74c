-- For other scripts: flows, whose tasks share limits. Only a flow with limits, a pause, a rest or waiting tasks has state;
-- the tasks of all others go into their queue at once.
--
-- A task of a flow with state waits in the sorted set WAITING_PREFIX .. name, by its due instant, until it is admitted to
-- its queue. From then on it holds a slot, until it is delivered, dead, cancelled, or waits for a retry; in an ordered
-- flow it keeps the slot for the retry. SLOTS_PREFIX .. name is a sorted set: the id by when it was admitted, and by when
-- it was claimed plus FOREVER_SECONDS. So a slot that is given back twice is given back once, and the size of the set is
-- what is in flight. Its scores are whole seconds, which Redis compares much faster, except in flows with a rate.
--
-- The field `waits` is 1 while tasks may wait, so that scripts look for them only then.
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
-- FLOWS is a sorted set: each flow with state by the instant at which a scheduler has to look at it, or '+inf'. The score
-- SIMPLE_FLOW + n means that no task waits and that `parallel` = n is the only limit, so one command reads many such flows,
-- and those without state.
--
-- A script that calls hold, enters, take_token or admit ends with finish_flows.
local flow_states, rule_limits, extras, names_only = {}, {}, {}, {}
local wanted, is_wanted = {}, {}
local ARE_NUMBERS = {rest = true, trips = true, tat = true, share = true, partial = true, window = true, begun = true,
  begun_before = true}
-- What a flow has by default.
local OF_FLOWS = {__index = {rest = 0, trips = 0, tat = 0, begun = 0, begun_before = 0}}
local OF_SIMPLE_FLOWS = {__index = {rest = 0, trips = 0, has_limits = true, stays = true, is_simple = true}}
local PART = 4000 -- arguments of one command, for which Lua's stack has room

-- The limits of a rule, or false if no rule has this pattern.
local function limits_of(rule)
  if rule_limits[rule] == nil then
    local limits = redis.call('HGET', FLOW_RULES, rule)
    rule_limits[rule] = limits and cjson.decode(limits)
  end
  return rule_limits[rule]
end

-- Adds a flow to those that read_simple_flows reads; `name` may be nil.
local function want_flow(name)
  if name and flow_states[name] == nil and not is_wanted[name] then
    is_wanted[name] = true
    wanted[#wanted + 1] = name
  end
end

-- Reads the scores of these flows in FLOWS. Where the score tells everything, flow_of need not read the flow.
local function read_simple_flows()
  local names = wanted
  wanted = {}
  for first = 1, #names, PART do
    local last = math.min(first + PART - 1, #names)
    local scores = redis.call('ZMSCORE', FLOWS, unpack(names, first, last))
    for i = first, last do
      local name, score = names[i], scores[i - first + 1]
      score = score and tonumber(score)
      if not score then
        flow_states[name] = false
      elseif score >= SIMPLE_FLOW and score < math.huge then
        local flow = {name = name, slots = SLOTS_PREFIX .. name, parallel = score - SIMPLE_FLOW}
        flow_states[name] = setmetatable(flow, OF_SIMPLE_FLOWS)
      end
    end
  end
end

-- The state of a flow, or false if it has none.
local function flow_of(name)
  local flow = flow_states[name]
  if flow ~= nil then
    return flow
  end
  -- HGETALL costs less than HMGET: most flows have no state, and the others few fields.
  local values = redis.call('HGETALL', FLOW_PREFIX .. name)
  if #values == 0 then
    flow_states[name] = false
    return false
  end
  -- The fields that most flows have are named here, because a table that grows is slow, and so is a large one.
  flow = setmetatable({
    name = name, slots = SLOTS_PREFIX .. name, parallel = nil, waits = nil, has_limits = nil, stays = nil, is_simple = nil,
    room = nil, entered = nil, joining = nil, -- see enters and hold
  }, OF_FLOWS)
  local is_made = false
  for i = 1, #values, 2 do
    local field, value = values[i], values[i + 1]
    if field == 'made' then
      is_made = true
    else
      flow[field] = ARE_NUMBERS[field] and tonumber(value) or value
    end
  end
  if not is_made then
    flow_states[name] = false
    return false
  end
  local has_limits = (flow.parallel or flow.rate or flow.ordered or flow.paused) and true or false
  flow.stays = has_limits -- its key, while it is idle
  flow.is_simple = tonumber(flow.parallel) and #values == 4 + (flow.waits and 2 or 0) + (flow.parallel_by and 2 or 0)
  local default = flow.rule and limits_of(flow.rule)
  if default then
    flow.parallel, flow.ordered = flow.parallel or default.parallel, flow.ordered or default.ordered == '1'
    if not flow.rate then
      flow.rate, flow.per, flow.burst = default.rate, default.per, default.burst
    end
    has_limits = (flow.parallel or flow.rate or flow.ordered or flow.paused) and true or false
  end
  flow.has_limits = has_limits
  flow.adapts = flow.parallel == 'auto' and not flow.ordered or nil
  if has_limits and not flow.adapts then
    flow.share = nil -- of the time before the limits were set
  end
  flow.parallel = flow.ordered and 1 or tonumber(flow.parallel) or flow.share or (flow.adapts and FIRST_PARALLEL or math.huge)
  if flow.rate then
    flow.per = tonumber(flow.per) or 1
    flow.grace = math.min(RATE_SLACK * flow.per, RATE_SLACK_SECONDS)
    flow.spacing = flow.per / tonumber(flow.rate) * (1 + 2 * flow.grace / flow.per)
    flow.slack = ((tonumber(flow.burst) or 1) - 1) * flow.spacing + flow.grace
  end
  flow_states[name] = flow
  return flow
end

-- Whether the score SIMPLE_FLOW + n in FLOWS tells everything about a flow.
local function is_told_by_score(flow)
  return flow.is_simple and not flow.waits
end

-- Changes the score of a flow that is about to get state of another kind than `parallel`.
local function note_state(name)
  local flow = flow_of(name)
  if flow and is_told_by_score(flow) then
    redis.call('ZADD', FLOWS, '+inf', name)
  else
    redis.call('ZADD', FLOWS, 'NX', '+inf', name)
  end
end

-- The name of a flow in a JSON object that has nothing else, or nil; decoding is slower.
local function only_flow_in(text)
  local name = names_only[text]
  if not name then
    name = string.match(text, '^{"flow":"([^"\\]*)"}$')
    if name then
      names_only[text] = name
    end
  end
  return name
end

-- What a job says of its flow, in its field extra: the name, its rank, whether its timeout adapts, and the rule of the flow.
-- A rank orders a task whose id the client chose among those whose ids QTask made, in the order of submission.
local function flow_in(extra)
  local name = only_flow_in(extra)
  if name then
    return name
  end
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
  local joining = flow.joining or {}
  flow.joining = joining
  joining[#joining + 1] = due
  joining[#joining + 1] = rank and rank .. ':' .. id or id
  held[queue] = (held[queue] or 0) + 1
end

-- Writes what hold, enters and take_token have left. Returns whether tasks begin to wait of which none did before.
local function write_flow(flow)
  local begins_to_wait = flow.joining and not flow.waits
  if flow.entered then
    redis.call('ZADD', flow.slots, unpack(flow.entered))
    flow.entered, flow.room = nil, nil
  end
  if flow.has_new_tokens then
    flow.has_new_tokens = false
    redis.call('HSET', FLOW_PREFIX .. flow.name, 'tat', string.format('%.6f', flow.tat), 'window', flow.window, 'begun',
      flow.begun, 'begun_before', flow.begun_before)
  end
  if flow.joining then
    redis.call('ZADD', WAITING_PREFIX .. flow.name, unpack(flow.joining))
    if begins_to_wait then
      flow.waits = true
      redis.call('HSET', FLOW_PREFIX .. flow.name, 'waits', 1)
    end
    flow.joining, flow.room = nil, nil
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
      local begins_to_wait = flow and write_flow(flow)
      note_state(name)
      redis.call('HSET', FLOW_PREFIX .. name, 'rule', rule, 'made', string.format('%.6f', now))
      flow_states[name] = nil
      flow = flow_of(name)
      flow.begins_to_wait = begins_to_wait
    end
  end
  return flow
end
