-- Finds the jobs of one queue in a part of the schedule, which holds those of all queues.
--
-- KEYS[1]  schedule (sorted set)
-- ARGV[1]  prefix of job keys
-- ARGV[2]  queue name
-- ARGV[3]  rank to begin with
-- ARGV[4]  jobs to look at
--
-- Returns {how many were looked at, id, …}, the next due first.
local ids = redis.call('ZRANGE', KEYS[1], ARGV[3], ARGV[3] + ARGV[4] - 1)
local found = {#ids}
for _, id in ipairs(ids) do
  if redis.call('HGET', ARGV[1] .. id, 'origin') == ARGV[2] then
    found[#found + 1] = id
  end
end
return found
