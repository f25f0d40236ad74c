-- For other scripts, which also need note_destination.lua: sets the fields of a flow that are in a JSON object, and
-- removes those that are '' there. A scheduler looks at the flow when tasks wait in it.
local function set_limits(name, limits, now, is_destination)
  local key = FLOW_PREFIX .. name
  if is_destination or string.find(name, ':', 1, true) then
    note_destination(name)
  end
  redis.call('HSETNX', key, 'made', string.format('%.6f', now))
  for field, value in pairs(cjson.decode(limits)) do
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
