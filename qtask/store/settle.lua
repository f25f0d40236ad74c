-- Settles outcomes of one worker: each task leaves the started registry for the finished or the dead,
-- and its figures go into the statistics, all in one step.
--
-- KEYS[1]  started registry
-- KEYS[2]  finished registry
-- KEYS[3]  failed registry (the dead)
-- KEYS[4]  counters (hash)
-- ARGV[1]  prefix of job keys
-- ARGV[2]  token of the worker
-- ARGV[3]  prefix of statistics keys
-- ARGV[4]  finished tasks to keep
-- ARGV[5]  seconds to keep them
-- ARGV[6]  outcomes to keep a kind in the statistics
-- ARGV[7]  seconds to keep them
-- ARGV[8]  seconds added to the score of the dead, so that RQ's own clean-up never drops them
-- then seven a task:
--   id, 'finished' or 'failed', outcome (JSON), error in words, counter ('kind:status'),
--   end of the delivery in Unix seconds, member of the statistics
--
-- Returns how many were settled. A task whose lease was taken back meanwhile is somebody else's by now and is
-- left alone; so a batch may be sent again when its reply was lost.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local settled = 0
local finished, failed, figures, counts = {}, {}, {}, {}
local expiry = string.format('%.3f', now + ARGV[5])
local forever = string.format('%.3f', now + ARGV[8])
for i = 9, #ARGV, 7 do
  local id, counter = ARGV[i], ARGV[i + 4]
  if redis.call('ZREM', KEYS[1], id .. ':' .. ARGV[2]) == 1 then
    local key = ARGV[1] .. id
    settled = settled + 1
    if ARGV[i + 1] == 'finished' then
      redis.call('HSET', key, 'status', 'finished', 'outcomes', ARGV[i + 2])
      redis.call('EXPIRE', key, ARGV[5])
      finished[#finished + 1] = expiry
      finished[#finished + 1] = id
    else
      redis.call('HSET', key, 'status', 'failed', 'outcomes', ARGV[i + 2], 'exc_info', ARGV[i + 3])
      failed[#failed + 1] = forever
      failed[#failed + 1] = id
    end
    if not figures[counter] then
      figures[counter], counts[counter] = {}, 0
    end
    table.insert(figures[counter], ARGV[i + 5])
    table.insert(figures[counter], ARGV[i + 6])
    counts[counter] = counts[counter] + 1
  end
end
if #failed > 0 then
  redis.call('ZADD', KEYS[3], unpack(failed))
end
if #finished > 0 then
  redis.call('ZADD', KEYS[2], unpack(finished))
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  local over = redis.call('ZCARD', KEYS[2]) - ARGV[4]
  if over > 0 then
    local dropped = redis.call('ZRANGE', KEYS[2], 0, over - 1)
    for _, id in ipairs(dropped) do
      redis.call('UNLINK', ARGV[1] .. id)
    end
    redis.call('ZREMRANGEBYRANK', KEYS[2], 0, over - 1)
  end
end
for counter, members in pairs(figures) do
  local key = ARGV[3] .. string.match(counter, '^[^:]*')
  redis.call('HINCRBY', KEYS[4], counter, counts[counter])
  redis.call('ZADD', key, unpack(members))
  redis.call('ZREMRANGEBYRANK', key, 0, -1 - ARGV[6])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - ARGV[7])
end
return settled
