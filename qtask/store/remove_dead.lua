-- Removes dead tasks with all that is kept of them.
--
-- ARGV[1]  prefix of job keys
-- ARGV[2]  prefix of failed registries
-- ARGV[3]  prefix of RQ's results, which a stock worker leaves
-- then the ids
--
-- Returns the ids that were dead.
local removed = {}
for i = 4, #ARGV do
  local key = ARGV[1] .. ARGV[i]
  local origin = redis.call('HGET', key, 'origin')
  if origin and redis.call('ZREM', ARGV[2] .. origin, ARGV[i]) == 1 then
    redis.call('UNLINK', key, ARGV[3] .. ARGV[i])
    removed[#removed + 1] = ARGV[i]
  end
end
return removed
