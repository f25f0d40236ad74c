-- For other scripts, which also need note_destination.lua: sets the fields of a flow that are in a JSON object, and removes
-- those that are '' there. A scheduler looks at the flow if that may change which tasks wait. The fields `…_by` tell apart the
-- limits that people have set from those that came with a task.
local BY = {parallel = 'parallel_by', rate = 'rate_by', ordered = 'ordered_by'}

-- Whether a flow has these fields already, as it does if each task gives the same limits.
local function has_fields(key, fields)
  local names = {'made'}
  for field in pairs(fields) do
    names[#names + 1] = field
  end
  for i, value in ipairs(redis.call('HMGET', key, unpack(names))) do
    local wanted = fields[names[i]]
    if i == 1 then
      if not value then
        return false
      end
    elseif (wanted == '') ~= (not value) or (wanted ~= '' and value ~= wanted and tonumber(value) ~= wanted) then
      return false
    end
  end
  return true
end

-- Tokens of a slower rate do not hold up a faster one: the next delivery begins after one span of the new rate at most.
local function limit_tat(key, fields, now)
  local tat, rate, per, burst = unpack(redis.call('HMGET', key, 'tat', 'rate', 'per', 'burst'))
  local new_per, new_burst = tonumber(fields.per) or 1, tonumber(fields.burst) or 1
  local is_new = tonumber(rate) ~= tonumber(fields.rate) or (tonumber(per) or 1) ~= new_per
    or (tonumber(burst) or 1) ~= new_burst
  local full = now + new_burst * new_per / fields.rate
  if tat and is_new and tonumber(tat) > full then
    redis.call('HSET', key, 'tat', string.format('%.6f', full))
  end
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
  if string.find(name, by_people and '[:/.]' or '^%l+:/') or string.find(name, '^pipe:') or name == '__graph__' then
    note_destination(name) -- it may be the name of a destination
  end
  if fields.rate and fields.rate ~= '' then
    limit_tat(key, fields, now)
  end
  local given, removed = {'made', string.format('%.6f', now)}, {}
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
  elseif was_removed or by_people or #given == 2 then
    redis.call('ZADD', FLOWS, string.format('%.6f', now), name) -- a flow without limits leaves no state
  else
    redis.call('ZADD', FLOWS, 'NX', '+inf', name)
  end
end
