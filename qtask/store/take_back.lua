-- Puts claimed tasks whose lease ended back into their queue, at its front: they have waited longest.
-- A lease ends at its instant, or before it when the worker's heartbeat is gone. A stock RQ worker's lease bears
-- its plain instant as score; when that is past, the task (which bears no created_at) is taken back as well.
--
-- KEYS[1]  started registry
-- KEYS[2]  queue (list)
-- KEYS[3]  workers (sorted set: token by last heartbeat)
-- ARGV[1]  prefix of job keys
-- ARGV[2]  seconds added to the score of a lease (see claim.lua)
-- ARGV[3]  seconds without a heartbeat after which a worker counts as dead
-- ARGV[4]  most leases to look at
--
-- Returns the ids that were taken back.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local dead, any = {}, false
for _, token in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[3])) do
  dead[token], any = true, true
end
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[2], now + ARGV[2], 'LIMIT', 0, ARGV[4])
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[4])) do
  if not redis.call('HGET', ARGV[1] .. string.match(member, '^[^:]*'), 'created_at') then
    ended[#ended + 1] = member
  end
end
if any then
  -- Leases of dead workers lie anywhere in the registry; it holds no more than is in flight.
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[4] - 1)) do
    if dead[string.match(member, ':(.*)$')] then
      ended[#ended + 1] = member
    end
  end
end
local taken = {}
for _, member in ipairs(ended) do
  if redis.call('ZREM', KEYS[1], member) == 1 then
    local id = string.match(member, '^[^:]*')
    if redis.call('HEXISTS', ARGV[1] .. id, 'data') == 1 then
      redis.call('HSET', ARGV[1] .. id, 'status', 'queued')
      taken[#taken + 1] = id
    end
  end
end
if #taken > 0 then
  redis.call('LPUSH', KEYS[2], unpack(taken))
end
for token in pairs(dead) do
  if #ended < tonumber(ARGV[4]) then
    redis.call('ZREM', KEYS[3], token)
  end
end
return taken
