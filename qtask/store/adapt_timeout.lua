-- For other scripts: the timeout of tasks with `timeout: auto` follows what the destination has shown.
--
-- It is the retransmission timeout of RFC 6298: a smoothed mean of the durations and four times their smoothed deviation,
-- doubled after a timeout until a delivery succeeds (Karn's algorithm). An aborted delivery costs more than a retransmitted
-- packet, so the timeout is FACTOR times as long, and at least FACTOR times as long as the slowest delivery lately. It is
-- between TIMEOUT_LEAST and TIMEOUT_LIMIT. TIMEOUT_PREFIX .. name holds it as JSON (Timing in flow_records.py).
local FACTOR, TIMEOUT_LEAST = 2, 1
local TIMEOUT_KEEP_SECONDS = 86400 -- without a delivery
local SLOWEST_SECONDS = 300 -- the slowest delivery of this span and of the one before it counts
local timings = {}

local function timing_of(name, now)
  local timing = timings[name]
  if not timing then
    local text = redis.call('GET', TIMEOUT_PREFIX .. name)
    timing = text and cjson.decode(text) or {doublings = 0, doubled = 0, slowest = 0, before = 0, turned = now}
    timing.doubled, timing.turned = math.min(timing.doubled, now), math.min(timing.turned, now) -- the clock was set back
    if now - timing.turned > SLOWEST_SECONDS then
      timing.before = now - timing.turned > 2 * SLOWEST_SECONDS and 0 or timing.slowest
      timing.slowest, timing.turned = 0, now
    end
    timings[name] = timing
  end
  return timing
end

-- Notes a delivery that succeeded or ran into its timeout.
local function note_duration(name, member, ended, now)
  local status, duration = string.match(member, '([^:]*):[^:]*:([^:]*)$')
  duration, ended = tonumber(duration), tonumber(ended)
  if not duration or not ended then
    return
  end
  if status == 'delivered' then
    local timing = timing_of(name, now)
    if timing.mean then
      timing.deviation = timing.deviation * 3 / 4 + math.abs(timing.mean - duration) / 4
      timing.mean = timing.mean * 7 / 8 + duration / 8
    else
      timing.mean, timing.deviation = duration, duration / 2
    end
    timing.slowest = math.max(timing.slowest, duration)
    timing.doublings = 0
  elseif status == 'timeout' then
    local timing = timing_of(name, now)
    if ended - duration >= timing.doubled and timing.seconds and timing.seconds < tonumber(TIMEOUT_LIMIT) then
      timing.doublings, timing.doubled = timing.doublings + 1, now
      timing.seconds = timing.seconds * 2 -- a later timeout of the same batch looks at it
    end
  end
end

-- Writes what was noted.
local function keep_timeouts()
  for name, timing in pairs(timings) do
    if timing.mean then
      local seconds = FACTOR * math.max(timing.mean + 4 * timing.deviation, timing.slowest, timing.before)
      seconds = math.max(TIMEOUT_LEAST, seconds) * 2 ^ timing.doublings
      timing.seconds = math.min(seconds, tonumber(TIMEOUT_LIMIT))
      redis.call('SET', TIMEOUT_PREFIX .. name, cjson.encode(timing), 'EX', TIMEOUT_KEEP_SECONDS)
    end
  end
end
