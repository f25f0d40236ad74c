-- Sets and removes limits of a flow, pauses and resumes it.
-- Needs note_destination.lua.
-- Needs set_limits.lua.
--
-- KEYS (SetFlowKeys in flows.py)
--   FLOWS  flows by the instant of the next look (sorted set; see flows.lua)
-- ARGV (SetFlowArguments)
--   FLOW_NAME
--   LIMITS     its fields as a JSON object, where '' removes a field
--
-- Returns nothing.
local time = redis.call('TIME')
set_limits(FLOW_NAME, LIMITS, time[1] + time[2] / 1000000, true)
