-- For other scripts, which also need flows.lua: the flow with state that a task belongs to without naming one. It finds links
-- that are written as the names of flows are; the others are found by the workers, which parse links.
local LINK_FLOWS_LIMIT = 16 -- with more of them, workers park the tasks
local LINK_DATA_LIMIT = 16384 -- bytes; larger data takes too long to decode here
local link_flows

-- Returns the name, or nil. `data` is that of the job.
local function flow_of_link(data)
  if not link_flows then
    local count = redis.call('SCARD', FLOW_DESTINATIONS)
    link_flows = count > 0 and count <= LINK_FLOWS_LIMIT and redis.call('SMEMBERS', FLOW_DESTINATIONS) or {}
  end
  for _, name in ipairs(link_flows) do
    if #data <= LINK_DATA_LIMIT and string.find(data, name, 1, true) then
      local ok, job = pcall(cjson.decode, data)
      local link = ok and type(job[3]) == 'table' and type(job[3][1]) == 'table' and (job[3][1].address or {}).link
      if type(link) == 'string' and string.sub(link, 1, #name) == name then
        local following = string.sub(link, #name + 1, #name + 1)
        if following == '' or string.find(name, '://', 1, true) and string.find('/?#', following, 1, true) then
          return name
        end
      end
    end
  end
end
