-- Removes dead tasks with all that is kept of them.
--
-- ARGV[1]  prefix of job keys
-- ARGV[2]  prefix of failed registries
-- then the ids
--
-- Returns the ids that were dead.
local removed = {}
for i = 3, #ARGV do
  local key = ARGV[1] .. ARGV[i]
  local origin = redis.call('HGET', key, 'origin')
  if origin and redis.call('ZREM', ARGV[2] .. origin, ARGV[i]) == 1 then
    redis.call('UNLINK', key)
    removed[#removed + 1] = ARGV[i]
  end
end
return removed
