-- For other scripts, which also need flows.lua: the admission of tasks that wait in flows to their queues.
local admitted, looks = {}, {} -- by queue: ids that finish_flows adds to it; by flow: instants that it notes in FLOWS
local CLAIM_SHARE = 0.25 -- of the slack in which a claim is expected; the rest is for claims that come later
local ADMIT_LIMIT = 500 -- tasks of one flow in one script; Redis answers nobody else in between
local LONG_SECONDS = 660 -- more than the longest timeout and its margin
local TRIPS_KEEP_SECONDS = 600 -- for which an open circuit breaker is remembered while its flow has no tasks
local LOOK_AGAIN_SECONDS = 30 -- after which the slots of a flow in which tasks wait are compared with the jobs

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
  return tonumber(redis.call('ZRANGE', WAITING_PREFIX .. flow.name, 0, 0, 'WITHSCORES')[2])
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
  if flow.ordered or flow.trips > 0 or flow.joining then
    return false -- these go through the waiting set, in order
  end
  if not flow.room then
    flow.room = flow.waits and 0 or room_in(flow, flow.parallel < math.huge and redis.call('ZCARD', flow.slots) or 1, now)
  end
  if flow.room < 1 then
    return false
  end
  flow.room = flow.room - 1
  local entered = flow.entered or {}
  flow.entered = entered
  entered[#entered + 1] = slot_score(flow, now)
  entered[#entered + 1] = id
  return true
end

-- Moves the first tasks that wait in a flow to those that finish_flows adds to their queues. Returns how many, and how many do
-- not wait any more. `held` counts tasks by queue.
local function admit_first(flow, count, now, held)
  local members = redis.call('ZPOPMIN', WAITING_PREFIX .. flow.name, count)
  local slots, deleted = {}, 0
  for i = 1, #members, 2 do
    local id = members[i]
    if string.find(id, ':', 1, true) then
      id = string.match(id, '[^:]*$')
    end
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
  return flow.spacing < flow.grace or now - admitted_at >= CLAIM_SHARE * flow.grace
end

-- When the last of the tasks that are queued was admitted.
local function last_admitted(flow)
  return tonumber(redis.call('ZREVRANGEBYSCORE', flow.slots, FOREVER_SECONDS, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]) or 0
end

-- Notes whether tasks may wait in a flow. If none does, the score of a simple flow tells everything again.
local function note_waiting(flow, waits)
  if waits then
    redis.call('HSET', FLOW_PREFIX .. flow.name, 'waits', 1)
  else
    redis.call('HDEL', FLOW_PREFIX .. flow.name, 'waits')
    if flow.is_simple then
      looks[flow.name] = math.huge
    end
  end
  flow.waits = waits
end

-- How many tasks wait in a flow. A look does not rely on what is noted: another program may have changed it.
local function number_waiting(flow, is_look)
  local count = (flow.waits or is_look) and redis.call('ZCARD', WAITING_PREFIX .. flow.name) or 0
  if not flow.waits == (count > 0) then
    note_waiting(flow, count > 0)
  end
  return count
end

-- Admits the tasks of a flow that may begin, and notes when to look at the flow again. `held` counts tasks by queue. `is_look`
-- is true for a look at a flow whose instant has come. Returns the instant of the next look.
local function admit(flow, now, held, is_look)
  local have_entered = flow.entered
  local begins_to_wait = write_flow(flow) or flow.begins_to_wait
  local left = number_waiting(flow, is_look)
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
      note_waiting(flow, false)
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
    local flow = look == math.huge and flow_states[name]
    scores[#scores + 1] = flow and is_told_by_score(flow) and string.format('%.0f', SIMPLE_FLOW + flow.parallel)
      or look == math.huge and '+inf' or string.format('%.6f', look)
    scores[#scores + 1] = name
  end
  call_in_parts('ZADD', FLOWS, scores)
  for queue, count in pairs(held) do
    if count ~= 0 then
      redis.call('HINCRBY', LEDGER, 'held:' .. queue, count)
    end
  end
end

-- Admits tasks of some flows, writes all that is left, and wakes the schedulers if a look is earlier than what they wait for.
local function admit_from(flows, now, held, is_look)
  local before = tonumber(redis.call('ZRANGE', FLOWS, 0, 0, 'WITHSCORES')[2]) or math.huge
  local look = math.huge
  for _, flow in pairs(flows) do
    look = math.min(look, admit(flow, now, held, is_look))
  end
  if look < before then
    redis.call('PUBLISH', WAKE, string.format('%.6f', look))
  end
  finish_flows(held)
end
