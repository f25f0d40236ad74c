-- For other scripts: flows, whose tasks share limits. Only a flow with limits, a pause, a rest or waiting tasks has state;
-- the tasks of all others go into their queue at once.
--
-- A task of a flow with state waits in the sorted set WAITING_PREFIX .. name, by its due instant, until it is admitted to
-- its queue. From then on it holds a slot, until it is delivered, dead, cancelled, or waits for a retry; in an ordered
-- flow it keeps the slot for the retry. SLOTS_PREFIX .. name is a sorted set: the id by when it was admitted, and when it
-- was claimed plus FOREVER_SECONDS, in whole seconds: Redis compares small sets of fractions much more slowly. So a slot that is given back twice is given back once, and the size of the set is what
-- is in flight.
--
-- A rate is GCRA (ITU-T I.371): `tat` is the instant at which the next delivery would begin if all were evenly spaced. The
-- token is taken when a task is claimed, since a delivery begins then. Admission only looks how many tokens there are. A
-- claim that comes a little before its instant is in time (RATE_SLACK of the span), so that the way from admission to
-- claim takes nothing off the rate; the spacing is longer by twice as much, so that no window has too many all the same.
--
-- A flow may have a rule, which gives it limits that it does not have itself: `rule` in its hash is the pattern, and the hash
-- FLOW_RULES has the limits. A flow that has no limits but these leaves no key when it is idle; the next task, which names
-- the rule, brings them back.
--
-- FLOWS is a sorted set: each flow with state by the instant at which a scheduler has to look at it, or '+inf'.
local flow_states, rule_limits, extras = {}, {}, {}
local holds, admitted, looks = {}, {}, {} -- what is written together; see hold, admit and finish_flows
local RATE_SLACK, RATE_SLACK_LIMIT = 0.01, 0.05
local ADMIT_LIMIT = 500 -- tasks of one flow in one script; Redis answers nobody else in between
local LONG_SECONDS = 660 -- more than the longest timeout and its margin
local LOOK_AGAIN_SECONDS = 30 -- after which the slots of a flow in which tasks wait are compared with the jobs

-- The limits of a rule, or false where there is none with this pattern.
local function limits_of(rule)
  if rule_limits[rule] == nil then
    local limits = redis.call('HGET', FLOW_RULES, rule)
    rule_limits[rule] = limits and cjson.decode(limits)
  end
  return rule_limits[rule]
end

-- The state of a flow, or false where it has none.
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
  local parallel, rate, per, burst, ordered = read.parallel, read.rate, read.per, read.burst, read.ordered
  local stays = (parallel or rate or ordered == '1' or read.paused) and true or false
  local default = read.rule and limits_of(read.rule)
  if default then
    parallel, ordered = parallel or default.parallel, ordered or default.ordered
    if not rate then
      rate, per, burst = default.rate, default.per, default.burst
    end
  end
  local has_limits = (parallel or rate or ordered == '1' or read.paused) and true or false
  flow = {
    name = name,
    waiting = WAITING_PREFIX .. name,
    slots = SLOTS_PREFIX .. name,
    ordered = ordered == '1',
    parallel = ordered == '1' and 1 or tonumber(parallel) or not has_limits and tonumber(read.share) or math.huge,
    has_limits = has_limits,
    stays = stays, -- its key, where it is idle
    rule = read.rule,
    paused = read.paused == '1',
    share = tonumber(read.share),
    rest = tonumber(read.rest) or 0,
    trips = tonumber(read.trips) or 0,
    probe = read.probe,
    partial = tonumber(read.partial),
    tat = tonumber(read.tat) or 0,
  }
  if rate then
    per = tonumber(per) or 1
    local spacing = per / tonumber(rate)
    local slack = math.min(RATE_SLACK * per, RATE_SLACK_LIMIT)
    flow.spacing = spacing * (1 + 2 * slack / per)
    flow.slack = ((tonumber(burst) or 1) - 1) * spacing + slack
  end
  flow_states[name] = flow
  return flow
end

-- What a job says of its flow, in its field extra: the name, its rank, and the rule of the flow. A rank orders a task whose
-- id the client chose among those whose ids QTask made, in the order of submission.
local function flow_in(extra)
  local read = extras[extra] -- most tasks of a flow have the same
  if not read then
    read = cjson.decode(extra)
    extras[extra] = read
  end
  return read.flow, read.rank, read.rule
end

-- Whether a delivery may begin now; takes the token of a rate.
local function take_token(flow, now)
  if flow.paused or flow.rest > now then
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

local function write_holds(flow)
  local one = holds[flow.name]
  if one then
    holds[flow.name] = nil
    redis.call('ZREM', flow.slots, unpack(one.ids))
    redis.call('ZADD', flow.waiting, unpack(one.members))
  end
end

-- Has a task wait in its flow; `due` is its score. Its slot, if it has one, is free. `held` counts tasks by queue. Redis
-- has it when the flow is admitted from, which the script must do.
local function hold(flow, id, rank, due, queue, held)
  local one = holds[flow.name]
  if not one then
    one = {ids = {}, members = {}}
    holds[flow.name] = one
  end
  one.ids[#one.ids + 1] = id
  one.members[#one.members + 1] = due
  one.members[#one.members + 1] = rank and rank .. ':' .. id or id
  held[queue] = (held[queue] or 0) + 1
  if #one.ids == ADMIT_LIMIT then
    write_holds(flow)
  end
end

-- Whether a task that is due may go to its queue at once: it has a slot then, as nothing waits before it. The script must
-- call `take_slots` before it admits tasks of the flow.
local function may_pass(flow, id, now)
  if flow.paused or flow.ordered or flow.spacing or flow.trips > 0 or flow.rest > now then
    return false
  end
  if not flow.free then
    flow.free = redis.call('EXISTS', flow.waiting) == 1 and 0 or flow.parallel - redis.call('ZCARD', flow.slots)
    flow.passed = {}
  end
  if flow.free <= 0 then
    return false
  end
  flow.free = flow.free - 1
  flow.passed[#flow.passed + 1] = math.floor(now)
  flow.passed[#flow.passed + 1] = id
  return true
end

-- Writes the slots of the tasks that have passed.
local function take_slots(flow)
  if flow.passed and #flow.passed > 0 then
    redis.call('ZADD', flow.slots, unpack(flow.passed))
    flow.passed = {}
  end
end

-- As flow_of, for a task that is to be delivered: gives the flow the rule that the task names, where it has none, or one
-- that is less specific or does not exist any more.
local function flow_by_rule(name, rule, now)
  local flow = flow_of(name)
  if rule and (not flow or flow.rule ~= rule) and limits_of(rule) then
    local other = flow and flow.rule
    if flow then
      take_slots(flow)
    end
    if not other or not limits_of(other) or rule == name or (other ~= name and #rule > #other) then
      redis.call('HSET', FLOW_PREFIX .. name, 'rule', rule)
      redis.call('HSETNX', FLOW_PREFIX .. name, 'made', string.format('%.6f', now))
      redis.call('ZADD', FLOWS, 'NX', '+inf', name)
      flow_states[name] = nil
      flow = flow_of(name)
    end
  end
  return flow
end

-- Frees the slots of tasks that other programs have deleted or moved. Looks at those that were admitted, or claimed, long
-- ago.
local function free_lost_slots(flow, now)
  local old = redis.call('ZRANGEBYSCORE', flow.slots, '-inf', now - LOOK_AGAIN_SECONDS, 'LIMIT', 0, ADMIT_LIMIT)
  local claimed = redis.call('ZRANGEBYSCORE', flow.slots, FOREVER_SECONDS, FOREVER_SECONDS + now - LONG_SECONDS, 'LIMIT', 0,
    ADMIT_LIMIT)
  for _, ids in ipairs({old, claimed}) do
    for _, id in ipairs(ids) do
      local status = redis.call('HGET', JOB_PREFIX .. id, 'status')
      if status ~= 'queued' and status ~= 'started' and not (flow.ordered and status == 'scheduled') then
        redis.call('ZREM', flow.slots, id)
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

-- Moves the tasks of a flow that may begin from its waiting set to the ends of their queues, and notes when to look at the
-- flow again. `held` counts tasks by queue. Returns the instant of that look.
local function admit(flow, now, held)
  write_holds(flow)
  local left = redis.call('ZCARD', flow.waiting)
  if left == 0 and flow.stays and looks[flow.name] == nil then
    return math.huge
  end
  local count, look = math.min(left, ADMIT_LIMIT), math.huge
  local used = redis.call('ZCARD', flow.slots)
  local tokens_used = 0
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
      tokens_used = redis.call('ZCOUNT', flow.slots, '-inf', FOREVER_SECONDS)
      local ahead = now + flow.slack - math.max(flow.tat, now)
      local tokens = ahead < 0 and 0 or math.floor(ahead / flow.spacing + 1e-6) + 1
      count = math.min(count, tokens - tokens_used)
    end
  end
  if count > 0 then
    local members = redis.call('ZPOPMIN', flow.waiting, count)
    local slots, deleted = {}, 0
    left = left - #members / 2
    for i = 1, #members, 2 do
      local id = string.match(members[i], '[^:]*$')
      local key = JOB_PREFIX .. id
      local origin = redis.call('HGET', key, 'origin')
      if origin then
        redis.call('HSET', key, 'status', 'queued')
        admitted[origin] = admitted[origin] or {}
        table.insert(admitted[origin], id)
        held[origin] = (held[origin] or 0) - 1
        slots[#slots + 1] = math.floor(now)
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
    used, tokens_used = used + #slots / 2, tokens_used + #slots / 2
  end
  if left == 0 then
    if used == 0 and not flow.stays and flow.rest <= now and flow.trips == 0 and flow.spacing and flow.tat > now then
      look = flow.tat -- until then a new flow of this name would allow more than the rate
    elseif used == 0 and not flow.stays and flow.rest <= now and flow.trips == 0 then
      redis.call('UNLINK', FLOW_PREFIX .. flow.name)
      redis.call('ZREM', FLOWS, flow.name)
      looks[flow.name] = nil
      if redis.call('SREM', FLOW_DESTINATIONS, flow.name) == 1 then
        redis.call('INCR', FLOW_VERSION)
      end
      flow_states[flow.name] = false
      return math.huge
    end
  elseif look == math.huge and not flow.paused and not flow.partial then
    if count == ADMIT_LIMIT and used < flow.parallel then
      look = now
    elseif flow.spacing and flow.tat > now then
      look = flow.tat - flow.slack + tokens_used * flow.spacing -- else the claims of those admitted will look
    end
    look = math.min(math.max(look, now), now + LOOK_AGAIN_SECONDS)
  end
  looks[flow.name] = look
  return look
end

-- Wakes the schedulers where a look is earlier than what they wait for. `before` is the head of FLOWS from before.
local function wake_for(look, before)
  if look < before then
    redis.call('PUBLISH', WAKE, string.format('%.6f', look))
  end
end

-- Calls a command with a key and many further arguments, as many at a time as Lua's stack allows.
local function call_in_parts(command, key, arguments)
  for first = 1, #arguments, 4000 do
    redis.call(command, key, unpack(arguments, first, math.min(first + 3999, #arguments)))
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
