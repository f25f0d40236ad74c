-- Replaces the flow rules. A flow whose tasks name a rule has the limits of the rule, except where it has its own; see
-- flows.lua. A flow in which tasks wait gets the new limits when a scheduler looks at it, within half a minute.
--
-- KEYS (SetRulesKeys in flow_rules.py)
--   FLOW_RULES  the rules (hash): pattern to the limits as a JSON object, and '' to ALL
-- ARGV (SetRulesArguments)
--   ALL           all rules as JSON; '' for none
--   ONLY_IF_NONE  '1' to change nothing where there are rules, else ''
-- then for each rule (StoredRule)
--   PATTERN
--   LIMITS  fields of a flow as a JSON object
--
-- Returns 1 if it has changed the rules, else 0.
local known = redis.call('HGET', FLOW_RULES, '') or ''
if known == ALL or (ONLY_IF_NONE ~= '' and known ~= '') then
  return 0
end
redis.call('UNLINK', FLOW_RULES)
if ALL ~= '' then
  redis.call('HSET', FLOW_RULES, '', ALL)
  for i = FIRST, #ARGV, WIDTH do
    redis.call('HSET', FLOW_RULES, ARGV[i + PATTERN], ARGV[i + LIMITS])
  end
end
return 1
