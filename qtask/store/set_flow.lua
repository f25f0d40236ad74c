-- Sets and removes limits of a flow, pauses and resumes it, and ends its rest. Tasks that may begin after that are admitted.
-- A flow that has no limits, pause, rest or tasks after that leaves no key behind.
-- Needs flows.lua.
-- Needs admission.lua.
-- Needs note_destination.lua.
-- Needs set_limits.lua.
--
-- KEYS (SetFlowKeys in flows.py)
--   FLOWS  flows by the instant of the next look (sorted set; see flows.lua)
-- ARGV (SetFlowArguments)
--   FLOW_NAME
--   LIMITS           its fields as a JSON object, where '' removes a field
--   FORGET_OUTCOMES  '1' to forget the outcomes that its circuit breaker counts, else ''
--
-- Returns nothing.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
set_limits(FLOW_NAME, LIMITS, now, true)
if FORGET_OUTCOMES == '1' then
  redis.call('UNLINK', HEALTH_PREFIX .. FLOW_NAME)
end
admit_from({flow_of(FLOW_NAME)}, now, {}, true)
