-- Leases a node number to a process that makes ids: the next number that no other process holds.
--
-- KEYS (NumberKeys in nodes.py)
--   NODES       counter, the last number that was leased
--   FLOW_RULES  the flow rules (hash); see flow_rules.py
-- ARGV (NumberArguments)
--   NUMBERS        how many numbers there are
--   NONCE          nonce of the process
--   LEASE_SECONDS  for which it may use the number
--
-- Returns (Leased) NUMBER, TIME, which is the reply of Redis's TIME, and RULES, the flow rules as JSON, '' for none.
-- Returns an error if all numbers that it tried are held.
for _ = 1, 10000 do
  local number = redis.call('INCRBY', NODES, 1) % NUMBERS
  if redis.call('SET', NODE_PREFIX .. string.format('%d', number), NONCE, 'NX', 'EX', LEASE_SECONDS) then
    return {[NUMBER] = number, [TIME] = redis.call('TIME'), [RULES] = redis.call('HGET', FLOW_RULES, '') or ''}
  end
end
return redis.error_reply('ERR every node number that was tried is held by another process')
