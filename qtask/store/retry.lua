-- Gives dead tasks another chance: back into their queue, with all their attempts; what became of the former ones
-- stays in their history.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
--
-- KEYS[1]  set of queue keys
-- KEYS[2]  retries of stock workers (set; see settle.lua): these are not dead
-- ARGV[1]  prefix of job keys
-- ARGV[2]  prefix of queue keys
-- ARGV[3]  prefix of failed registries
-- ARGV[4]  prefix of RQ's results, which a stock worker leaves
-- ARGV[5]  outcomes to keep in the history
-- then the ids
--
-- Returns the ids that were dead and now are queued.
local queued = {}
for i = 6, #ARGV do
  local id = ARGV[i]
  local key = ARGV[1] .. id
  local origin = redis.call('HGET', key, 'origin')
  local is_dead = origin and redis.call('SISMEMBER', KEYS[2], id) == 0
  if is_dead and redis.call('ZREM', ARGV[3] .. origin, id) == 1 then
    start_over(key, ARGV[5])
    redis.call('HSET', key, 'status', 'queued')
    redis.call('UNLINK', ARGV[4] .. id)
    redis.call('SADD', KEYS[1], ARGV[2] .. origin)
    redis.call('RPUSH', ARGV[2] .. origin, id)
    queued[#queued + 1] = id
  end
end
return queued
