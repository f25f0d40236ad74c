-- For other scripts, which also need flows.lua: the flow with state that a task belongs to without naming one. It finds the
-- links that begin as the names of flows do; see `flow` of each destination. The others (with a user, capitals, a default
-- port) are found by the workers, which parse links.
local LINK_FLOWS_LIMIT = 16 -- with more of them, workers park the tasks
local LINK_DATA_LIMIT = 16384 -- bytes; larger data takes too long to decode here
local link_flows, link_texts

-- From a link to the name of its flow, if the link is written as the name is.
local function origin(link)
  return string.match(link, '^http://unix:[^:]*') or string.match(link, '^%l+://[^/?#]+')
end
local NAMES = {
  http = origin,
  websocket = origin,
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

-- Returns the name, or nil. `data` is that of the job.
local function flow_of_link(data)
  if not link_flows then
    link_flows, link_texts = {}, {}
    local count = redis.call('SCARD', FLOW_DESTINATIONS)
    for _, name in ipairs(count > 0 and count <= LINK_FLOWS_LIMIT and redis.call('SMEMBERS', FLOW_DESTINATIONS) or {}) do
      link_flows[name] = true
      link_texts[#link_texts + 1] = string.match(name, '^tcp://(.*)') or string.match(name, '^udp://(.*)')
        or string.match(name, '^pipe:(.*)') or name
    end
  end
  if #data > LINK_DATA_LIMIT then
    return nil
  end
  for _, text in ipairs(link_texts) do -- a search is much cheaper than to decode
    if string.find(data, text, 1, true) then
      local ok, job = pcall(cjson.decode, data)
      local task = ok and type(job) == 'table' and type(job[3]) == 'table' and job[3][1]
      local address = type(task) == 'table' and task.address
      if type(address) == 'table' and type(address.link) == 'string' and NAMES[address.type] then
        local name = NAMES[address.type](address.link)
        return link_flows[name] and name or nil
      end
      return nil
    end
  end
end
