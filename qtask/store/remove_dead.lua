-- Removes dead tasks with all that is kept of them. Their ids are free again.
-- Needs is_foreign.lua.
--
-- KEYS[1]  ledger (hash)
-- KEYS[2]  retries of stock workers (set; see settle.lua): these are not dead
-- ARGV[1]  prefix of job keys
-- ARGV[2]  prefix of failed registries
-- ARGV[3]  prefix of RQ's results, which a stock worker leaves
-- then the ids
--
-- Returns the ids that were dead.
local removed, by_queue = {}, {}
for i = 4, #ARGV do
  local id, key = ARGV[i], ARGV[1] .. ARGV[i]
  local origin = redis.call('HGET', key, 'origin') or ''
  local is_dead = redis.call('SISMEMBER', KEYS[2], id) == 0
  if is_dead and redis.call('ZREM', ARGV[2] .. origin, id) == 1 then
    if not is_foreign(key) then
      by_queue[origin] = (by_queue[origin] or 0) + 1
    end
    redis.call('UNLINK', key, ARGV[3] .. id)
    removed[#removed + 1] = id
  end
end
for queue, count in pairs(by_queue) do
  redis.call('HINCRBY', KEYS[1], 'removed:' .. queue, count)
end
return removed
