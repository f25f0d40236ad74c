-- For other scripts, which also need flows.lua: the flow with state that a task belongs to without naming one. It finds the
-- links that begin as the names of flows do; see `flow` of each destination. The others (with a user, capitals, a default
-- port) are found by the workers, which parse links.
local LINK_DATA_LIMIT = 16384 -- bytes; larger data takes too long to decode here
local flow_names = {} -- by type and link; false if there is no such flow
local links_have_flows

-- From a link to the name of its flow, if the link is written as the name is.
local function origin_of(link)
  return string.match(link, '^http://unix:[^:]*') or string.match(link, '^%l+://[^/?#]+')
end
local NAMES = {
  http = origin_of,
  websocket = origin_of,
  redis = function(link)
    return string.match(link, '^redis://[^/?#]+')
  end,
  socket = function(link)
    return string.sub(link, 1, 5) == 'unix:' and link or 'tcp://' .. link
  end,
  udp = function(link)
    return 'udp://' .. link
  end,
  pipe = function(link)
    return 'pipe:' .. link
  end,
}

-- Whether any task may belong to a flow with state without naming it.
local function any_flow_of_link()
  if links_have_flows == nil then
    links_have_flows = redis.call('EXISTS', FLOW_DESTINATIONS) == 1
  end
  return links_have_flows
end

-- The value of a key that the data of a job has once; nil if it has none or several, or any escaped character.
local function only_text(data, key)
  local quoted = '"' .. key .. '"'
  local _, last = string.find(data, quoted .. ':"', 1, true)
  if last and not string.find(data, quoted, last, true) and not string.find(data, '\\', 1, true) then
    return string.match(data, '^[^"]*', last + 1)
  end
end

-- The type and the link of the address in the data of a job; nil if there are none.
local function address_in(data)
  if #data > LINK_DATA_LIMIT then
    return nil
  end
  local type_name, link = only_text(data, 'type'), only_text(data, 'link')
  if type_name and link then
    return type_name, link -- decoding is slow
  end
  local ok, job = pcall(cjson.decode, data)
  local task = ok and type(job) == 'table' and type(job[3]) == 'table' and job[3][1]
  local address = type(task) == 'table' and task.address
  if type(address) == 'table' and type(address.type) == 'string' and type(address.link) == 'string' then
    return address.type, address.link
  end
end

-- Returns the name, or nil. `data` is that of the job.
local function flow_of_link(data)
  local type_name, link = address_in(data)
  if not type_name or not NAMES[type_name] then
    return nil
  end
  local known = type_name .. ' ' .. link
  if flow_names[known] == nil then
    local name = NAMES[type_name](link)
    flow_names[known] = name and redis.call('SISMEMBER', FLOW_DESTINATIONS, name) == 1 and name
  end
  return flow_names[known] or nil
end
