-- Forgets delivered tasks whose retention has ended, and deletes all that is kept of them. Entries that RQ itself wrote
-- into these registries have plain instants as scores and are left to RQ.
-- Needs unlink_jobs.lua.
--
-- KEYS  the finished registries
-- ARGV (ForgetArguments in schedule.py)
--   LIMIT  most tasks to forget
--
-- Returns how many were forgotten.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local room = tonumber(LIMIT)
for _, registry in ipairs(KEYS) do
  local ended = redis.call('ZRANGEBYSCORE', registry, '(' .. FOREVER_SECONDS, now + FOREVER_SECONDS, 'LIMIT', 0, room)
  if #ended > 0 then
    redis.call('ZREM', registry, unpack(ended))
    unlink_jobs(ended)
    room = room - #ended
  end
end
return LIMIT - room
