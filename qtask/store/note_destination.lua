-- For other scripts: notes that a flow with state may be that of tasks which name none, so that workers look at what they
-- claim; see claim.lua.
local function note_destination(name)
  if redis.call('SADD', FLOW_DESTINATIONS, name) == 1 then
    redis.call('INCR', FLOW_VERSION)
  end
end
