-- Settles outcomes of one worker: each task leaves the started registry for the finished, the dead, or (to be tried
-- again) the schedule, and its figures go into the statistics, all in one step.
-- Needs newest_lines.lua.
-- Needs unlink_jobs.lua.
--
-- KEYS[1]  started registry
-- KEYS[2]  finished registry
-- KEYS[3]  failed registry (the dead)
-- KEYS[4]  counters (hash)
-- KEYS[5]  schedule (sorted set)
-- ARGV[1]  prefix of job keys
-- ARGV[2]  token of the worker
-- ARGV[3]  prefix of statistics keys
-- ARGV[4]  finished tasks to keep
-- ARGV[5]  seconds to keep them; a scheduler forgets them then
-- ARGV[6]  outcomes to keep a kind in the statistics
-- ARGV[7]  seconds to keep them
-- ARGV[8]  seconds added to the scores of both, so that RQ's own clean-up never drops them
-- ARGV[9]  dead to keep, 0 for all of them
-- ARGV[10] channel that wakes schedulers
-- ARGV[11] prefix of the keys that remember the ids which clients chose
-- ARGV[12] outcomes to keep a task
-- ARGV[13] prefix of RQ's results, which a stock worker leaves
-- then eight a task:
--   id, 'finished' or 'failed' or 'retry', outcome (JSON on one line; '' for none), error in words,
--   counter ('kind:status'), end of the delivery in Unix seconds, member of the statistics,
--   what is rare, as JSON, or '': {"again": true after the first delivery, "unbegun": true where the claim led to no
--   delivery, "delay": seconds until a retry, "remember": seconds for which the id, which the client chose, is
--   remembered}
--
-- Returns {how many were settled, id of a dead task that was dropped for want of room, …}. A task whose lease was
-- taken back meanwhile is somebody else's by now and is left alone; so a batch may be sent again when its reply was
-- lost.
local call, ARGV = redis.call, ARGV -- names of its own are found faster, and this runs for every task
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local settled = 0
local finished, failed, retried, figures = {}, {}, {}, {}
local earliest = math.huge
local expiry = string.format('%.3f', now + ARGV[5] + ARGV[8])
local forever = string.format('%.3f', now + ARGV[8])

local function all_outcomes(key, newest)
  return newest_lines((call('HGET', key, 'outcomes') or '') .. '\n' .. newest, ARGV[12])
end

local leases = {}
for i = 14, #ARGV, 8 do
  leases[#leases + 1] = ARGV[i] .. ':' .. ARGV[2]
end
local held = call('ZMSCORE', KEYS[1], unpack(leases))
call('ZREM', KEYS[1], unpack(leases))

for i = 14, #ARGV, 8 do
  local id, fate, outcomes, counter = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 4]
  if held[(i - 6) / 8] then
    local key = ARGV[1] .. id
    local rare = ARGV[i + 7] ~= '' and cjson.decode(ARGV[i + 7]) or nil
    settled = settled + 1
    if rare and rare.unbegun then
      call('HINCRBY', key, 'attempt', -1) -- the claim counted a delivery
    end
    if rare and rare.again then
      outcomes = all_outcomes(key, outcomes)
      call('UNLINK', ARGV[13] .. id) -- of an attempt by a stock worker: the outcomes say it all
    end
    if fate == 'finished' then
      call('HSET', key, 'status', 'finished', 'outcomes', outcomes)
      finished[#finished + 1] = expiry
      finished[#finished + 1] = id
      if rare and rare.remember then
        local due = call('HGET', key, 'due') or string.format('%.6f', now)
        call('SET', ARGV[11] .. id, due, 'EX', rare.remember)
      end
    elseif fate == 'retry' then
      local instant = now + rare.delay
      call('HSET', key, 'status', 'scheduled', 'outcomes', outcomes)
      retried[#retried + 1] = string.format('%.6f', instant)
      retried[#retried + 1] = id
      earliest = math.min(earliest, instant)
    else
      call('HSET', key, 'status', 'failed', 'outcomes', outcomes, 'exc_info', ARGV[i + 3])
      failed[#failed + 1] = forever
      failed[#failed + 1] = id
    end
    local members = figures[counter]
    if not members then
      members = {}
      figures[counter] = members
    end
    members[#members + 1] = ARGV[i + 5]
    members[#members + 1] = ARGV[i + 6]
  end
end

-- More than a batch can add, so that it comes down to a bound that was lowered, and nobody waits long for Redis.
local MOST_DROPPED = 1000

local function drop_beyond(registry, most)
  local over = math.min(call('ZCARD', registry) - most, MOST_DROPPED)
  if over <= 0 then
    return {}
  end
  local dropped = call('ZRANGE', registry, 0, over - 1)
  unlink_jobs(dropped, ARGV[1], ARGV[13])
  call('ZREMRANGEBYRANK', registry, 0, over - 1)
  return dropped
end

local lost = {}
if #failed > 0 then
  call('ZADD', KEYS[3], unpack(failed))
  if ARGV[9] ~= '0' then
    lost = drop_beyond(KEYS[3], ARGV[9])
  end
end
if #finished > 0 then
  call('ZADD', KEYS[2], unpack(finished))
  drop_beyond(KEYS[2], ARGV[4])
end
if #retried > 0 then
  local head = call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
  call('ZADD', KEYS[5], unpack(retried))
  if earliest < (tonumber(head[2]) or math.huge) then
    call('PUBLISH', ARGV[10], string.format('%.6f', earliest))
  end
end
for counter, members in pairs(figures) do
  local key = ARGV[3] .. string.match(counter, '^[^:]*')
  call('HINCRBY', KEYS[4], counter, #members / 2)
  call('ZADD', key, unpack(members))
  call('ZREMRANGEBYRANK', key, 0, -1 - ARGV[6])
  call('ZREMRANGEBYSCORE', key, '-inf', now - ARGV[7])
end
return {settled, unpack(lost)}
