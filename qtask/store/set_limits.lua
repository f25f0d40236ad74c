-- For other scripts, which also need note_destination.lua: sets the fields of a flow that are in a JSON object, and removes
-- those that are '' there. A scheduler looks at the flow where that may change which tasks wait.
local function set_limits(name, limits, now, is_destination)
  local key = FLOW_PREFIX .. name
  if is_destination or string.find(name, ':', 1, true) then
    note_destination(name)
  end
  local given, removed = {'made', string.format('%.6f', now)}, {}
  for field, value in pairs(cjson.decode(limits)) do
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
