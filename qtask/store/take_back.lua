-- Puts claimed tasks whose lease ended back into their queue, at its front: they have waited longest. That their
-- delivery was lost goes into their history; whether they may be tried once more, the worker that claims them decides.
-- A lease ends at its instant, or before it when the worker's heartbeat is gone. A stock RQ worker's lease bears
-- its plain instant as score; when that is past, the task (a foreign job bears created_at and no attempt) is taken
-- back as well.
--
-- KEYS[1]  started registry
-- KEYS[2]  queue (list)
-- KEYS[3]  workers (sorted set: token by last heartbeat)
-- ARGV[1]  prefix of job keys
-- ARGV[2]  seconds added to the score of a lease (see claim.lua)
-- ARGV[3]  seconds without a heartbeat after which a worker counts as dead
-- ARGV[4]  most leases to look at
-- ARGV[5]  the outcome of a lost delivery (JSON on one line) with %ATTEMPT% and %NOW% in it
--
-- Returns the ids that were taken back.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local dead, any = {}, false
for _, token in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[3])) do
  dead[token], any = true, true
end
local most = tonumber(ARGV[4])
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[2], now + ARGV[2], 'LIMIT', 0, most)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, most)) do
  local job = redis.call('HMGET', ARGV[1] .. string.match(member, '^[^:]*'), 'created_at', 'attempt')
  if not job[1] or job[2] then
    ended[#ended + 1] = member
  end
end
local all_seen = true
if any then
  -- Leases of dead workers lie anywhere in the registry; it holds no more than is in flight.
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if dead[string.match(member, ':(.*)$')] then
      if #ended >= most then
        all_seen = false
        break
      end
      ended[#ended + 1] = member
    end
  end
end
local taken = {}
for _, member in ipairs(ended) do
  if redis.call('ZREM', KEYS[1], member) == 1 then
    local id = string.match(member, '^[^:]*')
    local key = ARGV[1] .. id
    local job = redis.call('HMGET', key, 'attempt', 'outcomes', 'data')
    if job[3] then
      local line = string.gsub(ARGV[5], '%%(%u+)%%', {ATTEMPT = job[1] or '1', NOW = string.format('%.6f', now)})
      redis.call('HSET', key, 'status', 'queued', 'outcomes', job[2] and job[2] .. '\n' .. line or line)
      redis.call('LPUSH', KEYS[2], id)
      taken[#taken + 1] = id
    end
  end
end
if all_seen then
  for token in pairs(dead) do
    redis.call('ZREM', KEYS[3], token)
  end
end
return taken
