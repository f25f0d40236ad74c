-- For other scripts, which also need note_destination.lua: sets the fields of a flow that are in a JSON object, and removes
-- those that are '' there. A scheduler looks at the flow where that may change which tasks wait.
local function set_limits(name, limits, now, is_destination)
  local key = FLOW_PREFIX .. name
  if is_destination or string.find(name, ':', 1, true) then
    note_destination(name)
  end
  local given, removed = {'made', string.format('%.6f', now)}, {}
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
      removed[#removed + 1] = field
    else
      given[#given + 1] = field
      given[#given + 1] = value
    end
  end
  redis.call('HSET', key, unpack(given))
  local was_removed = #removed > 0 and redis.call('HDEL', key, unpack(removed)) > 0
  if redis.call('EXISTS', WAITING_PREFIX .. name) == 1 then
    redis.call('ZADD', FLOWS, string.format('%.6f', now), name)
    redis.call('PUBLISH', WAKE, string.format('%.6f', now))
  elseif was_removed or is_destination or #given == 2 then
    redis.call('ZADD', FLOWS, string.format('%.6f', now), name) -- a flow without limits leaves no state
  else
    redis.call('ZADD', FLOWS, 'NX', '+inf', name)
  end
end
