-- For other scripts, which also need flows.lua: adapts the limit of flows with `parallel: auto` to their destinations.
--
-- Delay: the window update of FAST TCP (Jin, Wei and Low, 2004), the equation form of TCP Vegas. The share of the limit that
-- waits inside the destination is 1 - base / duration, where base is the duration without load. The limit moves to
-- limit * base / duration + SPARE * limit: it grows while nothing waits there, and settles where a fifth of it waits. Until
-- durations rise or deliveries fail for the first time, it doubles (slow start).
-- Failures: CUBIC (RFC 9438). The limit falls at once, and then grows along a cubic curve that is flat near the limit at
-- which deliveries failed.
-- Base is measured again from time to time with half of the limit, as BBR does, since what waits in the destination would
-- hide in it.
--
-- A round has as many outcomes as the limit, of deliveries that began after the limit last changed. Durations are averaged by
-- their logarithms, and a rise counts beyond two standard errors, so that one slow delivery says little. The deliveries that
-- end first are the short ones, so base is measured with twice as many. The limit is the
-- field share; the field adapting holds the rest as JSON (Adapting in flow_records.py).
local SPARE = 0.2
local FAILED_SHARE = 0.05 -- of the outcomes, beside one; fewer failures do not come from the load
local FALL, FIRST_FALL = 0.7, 0.5 -- to this part of the limit; the other one in slow start
local CUBIC = 0.04 -- C of the RFC, whose unit is deliveries in flight by seconds cubed
local LEAST_OUTCOMES = 8 -- of a round
local OVERHEAD_SECONDS = 0.02 -- added to each duration: a slot is also taken on the way to the worker and back
local STALE_SECONDS = 10 -- an outcome that ended earlier is not counted: its worker was cut off from Redis
local ROUND_SECONDS_LIMIT = 300 -- a round that takes longer begins anew
local MEASURE_SECONDS, MEASURE_ROUNDS = 30, 30 -- base is measured again when it is older than both
local FIRST_PATIENCE = 0.1 -- of these: the first deliveries open connections, so they take longer
local adapting = {}

local function begin_round(state)
  state.count, state.sum, state.squares, state.bad = 0, 0, 0, 0
end

-- What is known of a flow that adapts.
local function state_of(flow, now)
  local state = adapting[flow.name]
  if not state then
    local text = redis.call('HGET', FLOW_PREFIX .. flow.name, 'adapting')
    state = text and cjson.decode(text)
    if not state then
      state = {since = 0, slow = true, rounds = 0}
      begin_round(state)
    elseif state.since > now then
      state.since = now -- the clock was set back
      state.based = state.based and math.min(state.based, now)
    end
    state.ended = 0
    adapting[flow.name] = state
  end
  return state
end

-- Counts an outcome. `bad` says that the destination is in trouble; other failures say nothing about its load.
local function note_delivery(flow, member, ended, bad, now)
  local state = state_of(flow, now)
  state.ended = state.ended + 1
  local status, duration = string.match(member, '([^:]*):[^:]*:([^:]*)$')
  duration, ended = tonumber(duration), tonumber(ended)
  if not duration or not ended or ended - duration < state.since or math.abs(now - ended) > STALE_SECONDS then
    return
  end
  if bad then
    state.bad = state.bad + 1
  elseif status == 'delivered' then
    local size = math.log(duration + OVERHEAD_SECONDS)
    state.count, state.sum, state.squares = state.count + 1, state.sum + size, state.squares + size * size
  end
end

local function in_words(size)
  local seconds = math.max(0, math.exp(size) - OVERHEAD_SECONDS)
  return seconds < 1 and string.format('%.3g ms', seconds * 1000) or string.format('%.3g s', seconds)
end

-- The limit after the failures of a round.
local function fall(state, limit, now)
  state.high, state.fell, state.from = math.max(1, limit - 1), now, nil
  local lower = math.max(1, math.floor(limit * (state.slow and FIRST_FALL or FALL)))
  state.low, state.slow = lower, false
  return lower, string.format('%d of %d failed', state.bad, state.bad + state.count)
end

-- The most that the limit may grow to after failures.
local function cubic(state, now)
  state.fell = math.min(state.fell, now)
  local flat = (math.max(0, state.high - state.low) / CUBIC) ^ (1 / 3)
  return CUBIC * (now - state.fell - flat) ^ 3 + state.high
end

-- The limit after a round without failures, and why it changes. `used` is how much of the limit is used.
local function move(state, limit, used, waiting, now)
  local mean = state.sum / state.count
  local deviation = math.sqrt(math.max(0, state.squares / state.count - mean * mean) / state.count)
  local is_used = 2 * used >= limit
  state.rounds = state.rounds + 1
  local unloaded = mean + deviation -- the least of many means would be too small where durations differ
  if not state.base or unloaded <= state.base or state.from or limit == 1 or not is_used then
    state.base, state.based, state.rounds = unloaded, now, 0
  end
  if state.from then
    local from = state.from
    state.from = nil
    return from, 'durations were measured with half of it'
  end
  local ratio = math.min(1, math.exp(state.base - mean + 2 * deviation))
  local patience = state.measured and 1 or FIRST_PATIENCE
  if state.rounds >= MEASURE_ROUNDS * patience and now - state.based >= MEASURE_SECONDS * patience then
    state.measured = true
    if ratio < 1 then
      state.from = limit
      return math.floor(limit / 2), 'durations are measured with half of it'
    end
    state.based, state.rounds = now, 0
  end
  state.slow = state.slow and ratio > 1 - SPARE / 2
  local new = math.floor(state.slow and 2 * limit or limit * ratio + math.max(1, SPARE * limit) + 0.5)
  if new < limit then
    return math.max(1, new), string.format('durations rose from %s to %s', in_words(state.base), in_words(mean))
  elseif not is_used then
    return limit
  end
  if state.high then
    local most = cubic(state, now)
    if most > 2 * state.high + 1 then
      state.high, state.low, state.fell = nil, nil, nil
    else
      new = math.max(limit, math.min(new, math.floor(most)))
    end
  end
  return new, waiting and 'grew while tasks waited' or 'grew while at least half of it was used'
end

-- Adapts the limits of the flows whose outcomes were noted. Their freed slots are not in use any more.
local function adapt_parallel(now)
  for name, state in pairs(adapting) do
    local flow = flow_of(name)
    if flow and flow.adapts then
      local limit = math.max(1, math.min(flow.parallel, tonumber(FLOW_PARALLEL_LIMIT)))
      local new, why = limit, nil
      if state.bad > 1 and state.bad - 1 > FAILED_SHARE * (state.bad + state.count) then
        new, why = fall(state, limit, now)
        begin_round(state)
      elseif state.count >= math.max(limit, LEAST_OUTCOMES) * (state.from and 2 or 1) then
        local waiting = redis.call('EXISTS', WAITING_PREFIX .. flow.name) == 1
        new, why = move(state, limit, redis.call('ZCARD', flow.slots) + state.ended, waiting, now)
        new = math.min(new, tonumber(FLOW_PARALLEL_LIMIT))
        begin_round(state)
      elseif state.began and now - state.began > ROUND_SECONDS_LIMIT then
        begin_round(state)
      end
      if state.count + state.bad == 0 then
        state.began = now
      end
      if new ~= flow.parallel then
        state.since, state.why, state.changed = now, why or 'the most that is allowed', now
        flow.parallel = new
        redis.call('HSET', FLOW_PREFIX .. name, 'share', new)
      end
      state.ended = nil
      redis.call('HSET', FLOW_PREFIX .. name, 'adapting', cjson.encode(state))
    end
  end
end
