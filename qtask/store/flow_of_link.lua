-- For other scripts, which also need flows.lua: the flow with state that a task belongs to without naming one. It finds links
-- that are written as the names of flows are; the others are found by the workers, which parse links.
local LINK_DATA_LIMIT = 16384 -- bytes; larger data takes too long to decode here
local flow_names = {} -- by link; false where there is no such flow
local links_have_flows

-- Whether any task may belong to a flow with state without naming it.
local function any_flow_of_link()
  if links_have_flows == nil then
    links_have_flows = redis.call('EXISTS', FLOW_DESTINATIONS) == 1
  end
  return links_have_flows
end

-- The link in the data of a job, or nil. Decoding is slow, and not needed where only one key is called link and no character
-- is escaped.
local function link_in(data)
  if #data > LINK_DATA_LIMIT then
    return nil
  end
  local _, last = string.find(data, '"link":"', 1, true)
  if last and not string.find(data, '\\', 1, true) and not string.find(data, '"link"', last, true) then
    return string.match(data, '^[^"]*', last + 1)
  end
  local ok, job = pcall(cjson.decode, data)
  local task = ok and type(job) == 'table' and type(job[3]) == 'table' and job[3][1]
  local link = type(task) == 'table' and type(task.address) == 'table' and task.address.link
  return type(link) == 'string' and link or nil
end

-- Returns the name, or nil. `data` is that of the job.
local function flow_of_link(data)
  local link = link_in(data)
  if not link then
    return nil
  end
  local name = flow_names[link]
  if name == nil then
    name = string.match(link, '^%a[%w+.-]*://[^/?#]+') or link
    name = redis.call('SISMEMBER', FLOW_DESTINATIONS, name) == 1 and name
    flow_names[link] = name
  end
  return name or nil
end
