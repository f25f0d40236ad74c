-- Removes dead tasks and all that is kept of them. Clients may use their ids again.
-- Needs is_foreign.lua.
--
-- KEYS (RemoveKeys in tasks.py)
--   LEDGER         hash
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua), which are not dead
-- ARGV  the ids
--
-- Returns the ids that were dead.
local removed, by_queue = {}, {}
for _, id in ipairs(ARGV) do
  local key = JOB_PREFIX .. id
  local origin = redis.call('HGET', key, 'origin') or ''
  local is_dead = redis.call('SISMEMBER', STOCK_RETRIES, id) == 0
  if is_dead and redis.call('ZREM', FAILED_PREFIX .. origin, id) == 1 then
    if not is_foreign(key) then
      by_queue[origin] = (by_queue[origin] or 0) + 1
    end
    redis.call('UNLINK', key, RESULTS_PREFIX .. id)
    removed[#removed + 1] = id
  end
end
for queue, count in pairs(by_queue) do
  redis.call('HINCRBY', LEDGER, 'removed:' .. queue, count)
end
return removed
