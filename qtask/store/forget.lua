-- Forgets delivered tasks whose keeping has ended, with all that is kept of them. What RQ itself keeps in these
-- registries, under plain instants, is left to RQ.
-- Needs unlink_jobs.lua.
--
-- KEYS     finished registries
-- ARGV[1]  prefix of job keys
-- ARGV[2]  prefix of RQ's results, which a stock worker leaves
-- ARGV[3]  seconds added to the scores (see settle.lua)
-- ARGV[4]  most tasks to forget
--
-- Returns how many were forgotten.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local room = tonumber(ARGV[4])
for _, registry in ipairs(KEYS) do
  local ended = redis.call('ZRANGEBYSCORE', registry, '(' .. ARGV[3], now + ARGV[3], 'LIMIT', 0, room)
  if #ended > 0 then
    redis.call('ZREM', registry, unpack(ended))
    unlink_jobs(ended, ARGV[1], ARGV[2])
    room = room - #ended
  end
end
return ARGV[4] - room
