-- For other scripts, which also need note_destination.lua: sets the fields of a flow that are in a JSON object, and removes
-- those that are '' there. A scheduler looks at the flow when tasks wait in it. The fields `…_by` tell apart the limits that
-- people have set from those that came with a task.
local BY = {parallel = 'parallel_by', rate = 'rate_by', ordered = 'ordered_by'}

-- Whether a flow has these fields already, as where each task gives the same limits.
local function has_fields(key, fields)
  local names = {}
  for field in pairs(fields) do
    names[#names + 1] = field
  end
  for i, value in ipairs(#names > 0 and redis.call('HMGET', key, unpack(names)) or {}) do
    local wanted = fields[names[i]]
    if (wanted == '') ~= (not value) or (wanted ~= '' and value ~= wanted and tonumber(value) ~= wanted) then
      return false
    end
  end
  return true
end

local function set_limits(name, limits, now, by_people)
  local key = FLOW_PREFIX .. name
  local fields = cjson.decode(limits)
  for limit, by in pairs(BY) do
    if fields[limit] then
      fields[by] = by_people and fields[limit] ~= '' and 'set' or ''
    end
  end
  if not by_people and has_fields(key, fields) then
    return
  end
  if by_people or string.find(name, ':', 1, true) then
    note_destination(name)
  end
  redis.call('HSETNX', key, 'made', string.format('%.6f', now))
  local given, removed = {}, {}
  for field, value in pairs(fields) do
    if value == '' then
      removed[#removed + 1] = field
    else
      given[#given + 1] = field
      given[#given + 1] = value
    end
  end
  if #removed > 0 then
    redis.call('HDEL', key, unpack(removed))
  end
  if #given > 0 then
    redis.call('HSET', key, unpack(given))
  end
  -- A scheduler looks at it, also where no task waits: a flow that has no limits any more leaves no state.
  redis.call('ZADD', FLOWS, string.format('%.6f', now), name)
  if redis.call('EXISTS', WAITING_PREFIX .. name) == 1 then
    redis.call('PUBLISH', WAKE, string.format('%.6f', now))
  end
end
