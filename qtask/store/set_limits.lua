-- For other scripts, which also need note_destination.lua: sets the fields of a flow that are in a JSON object, and removes
-- those that are '' there. A scheduler looks at the flow if that may change which tasks wait. The fields `…_by` tell apart the
-- limits that people have set from those that came with a task.
local limits_read = {} -- by JSON: the fields, their names, and the score of a flow that has only these
local BY = {parallel = 'parallel_by', rate = 'rate_by', ordered = 'ordered_by'}

-- Whether a flow has these fields already, as it does if each task gives the same limits. The first name is 'made'.
local function has_fields(key, fields, names)
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

-- The score in FLOWS of a flow that has only these limits, given with a task; nil if they are more than `parallel`.
local function simple_score(fields)
  for field in pairs(fields) do
    if field ~= 'parallel' and field ~= 'parallel_by' then
      return nil
    end
  end
  local parallel = fields.parallel_by == '' and tonumber(fields.parallel)
  return parallel and string.format('%.0f', SIMPLE_FLOW + parallel)
end

-- `score` is that of the flow in FLOWS, if it is known.
local function set_limits(name, limits, now, by_people, score)
  local key = FLOW_PREFIX .. name
  local read = limits_read[limits] -- those of many flows are equal
  if not read then
    local fields = cjson.decode(limits)
    for limit, by in pairs(BY) do
      if fields[limit] then
        fields[by] = by_people and fields[limit] ~= '' and 'set' or ''
      end
    end
    local names = {'made'}
    for field in pairs(fields) do
      names[#names + 1] = field
    end
    read = {fields = fields, names = names, score = simple_score(fields)}
    limits_read[limits] = read
  end
  local fields = read.fields
  if not by_people and ((score and score == read.score) or has_fields(key, fields, read.names)) then
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
    local is_simple = read.score and redis.call('HLEN', key) == 2
    redis.call('ZADD', FLOWS, is_simple and read.score or '+inf', name)
  end
end
