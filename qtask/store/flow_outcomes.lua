-- For other scripts, which also need flows.lua and note_destination.lua: what the outcomes of deliveries mean for their flow.
--
-- A circuit breaker: a flow rests when at least BREAKER_OUTCOMES deliveries ended in the last minute and BREAKER_SHARE of them
-- failed in a way that says that the destination is in trouble. It rests for BREAKER_SECONDS, twice as long each time, up to
-- BREAKER_SECONDS_LIMIT. Then one delivery is made, and its outcome decides. The hash HEALTH_PREFIX .. name counts the
-- outcomes of the last minute by ten seconds; a flow of which none has failed for a while has none.
local BREAKER_SHARE, BREAKER_SECONDS, BREAKER_SECONDS_LIMIT = 0.8, 5, 60
local BUCKET_SECONDS, BUCKETS = 10, 6

-- Has a flow rest until an instant, or for longer where it rests already. Further fields may be given.
local function rest(name, instant, why, now, ...)
  local key = FLOW_PREFIX .. name
  note_state(name)
  redis.call('HSETNX', key, 'made', string.format('%.6f', now))
  note_destination(name)
  if instant > (tonumber(redis.call('HGET', key, 'rest') or 0)) then
    redis.call('HSET', key, 'rest', string.format('%.6f', instant), 'why', why, 'since', string.format('%.6f', now), ...)
  end
  flow_states[name] = nil
end

local function open_breaker(name, trips, now)
  local seconds = math.min(BREAKER_SECONDS * 2 ^ trips, BREAKER_SECONDS_LIMIT)
  rest(name, now + seconds, 'breaker', now, 'trips', trips + 1)
  redis.call('HDEL', FLOW_PREFIX .. name, 'probe')
end

-- Decides by the outcome of the probe. Those of deliveries that began before the breaker opened do not count.
local function note_probe(flow, bad, now)
  if bad then
    open_breaker(flow.name, flow.trips, now)
  else
    redis.call('HDEL', FLOW_PREFIX .. flow.name, 'trips', 'probe', 'rest', 'why', 'since')
    redis.call('UNLINK', HEALTH_PREFIX .. flow.name)
    flow_states[flow.name] = nil
  end
end

-- Counts an outcome. `bad` says that the destination is in trouble.
local function note_outcome(name, bad, now)
  local health = HEALTH_PREFIX .. name
  local bucket = math.floor(now / BUCKET_SECONDS)
  if not bad then
    if redis.call('EXISTS', health) == 1 then
      redis.call('HINCRBY', health, 'good' .. bucket, 1)
    end
    return
  end
  redis.call('HINCRBY', health, 'bad' .. bucket, 1)
  redis.call('EXPIRE', health, BUCKET_SECONDS * (BUCKETS + 1))
  local bads, total = 0, 0
  local counts = redis.call('HGETALL', health)
  for i = 1, #counts, 2 do
    local kind, number = string.match(counts[i], '^(%a+)(%d+)$')
    if tonumber(number) <= bucket - BUCKETS then
      redis.call('HDEL', health, counts[i])
    else
      total = total + counts[i + 1]
      bads = bads + (kind == 'bad' and counts[i + 1] or 0)
    end
  end
  if total >= tonumber(BREAKER_OUTCOMES) and bads >= BREAKER_SHARE * total then
    open_breaker(name, 0, now)
    redis.call('UNLINK', health)
  end
end

-- A flow without limits of its own gets more room while its deliveries succeed: one place for each.
local function grow_share(flow)
  if flow.share then
    flow.share = flow.share + 1
    flow.parallel = flow.parallel + 1
    redis.call('HSET', FLOW_PREFIX .. flow.name, 'share', flow.share)
  end
end
