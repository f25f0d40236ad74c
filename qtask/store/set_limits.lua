-- For other scripts, which also need note_destination.lua: sets the fields of a flow that are in a JSON object, and
-- removes those that are '' there. A scheduler looks at the flow when tasks wait in it.
local function set_limits(name, limits, now, is_destination)
  local key = FLOW_PREFIX .. name
  if is_destination or string.find(name, ':', 1, true) then
    note_destination(name)
  end
  redis.call('HSETNX', key, 'made', string.format('%.6f', now))
  local fields = cjson.decode(limits)
  if fields.rate and fields.rate ~= '' then
    -- Tokens of a slower rate do not hold up a faster one: the next delivery begins after one span of the new rate at most.
    local tat, rate, per, burst = unpack(redis.call('HMGET', key, 'tat', 'rate', 'per', 'burst'))
    local new_per, new_burst = tonumber(fields.per) or 1, tonumber(fields.burst) or 1
    local is_new = tonumber(rate) ~= tonumber(fields.rate) or (tonumber(per) or 1) ~= new_per or (tonumber(burst) or 1) ~= new_burst
    local full = now + new_burst * new_per / fields.rate
    if tat and is_new and tonumber(tat) > full then
      redis.call('HSET', key, 'tat', string.format('%.6f', full))
    end
  end
  for field, value in pairs(fields) do
    if value == '' then
      redis.call('HDEL', key, field)
    else
      redis.call('HSET', key, field, value)
    end
  end
  -- A scheduler looks at it, also where no task waits: a flow that has no limits any more leaves no state.
  redis.call('ZADD', FLOWS, string.format('%.6f', now), name)
  if redis.call('EXISTS', WAITING_PREFIX .. name) == 1 then
    redis.call('PUBLISH', WAKE, string.format('%.6f', now))
  end
end
