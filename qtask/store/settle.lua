-- Settles outcomes of one worker: each task leaves the started registry for the finished, the dead, or (to be tried
-- again) the schedule, and its figures go into the statistics, all in one step.
-- Needs newest_lines.lua.
-- Needs unlink_jobs.lua.
-- Needs is_foreign.lua.
--
-- KEYS[1]  started registry
-- KEYS[2]  finished registry
-- KEYS[3]  failed registry (the dead)
-- KEYS[4]  counters (hash)
-- KEYS[5]  schedule (sorted set)
-- KEYS[6]  ledger (hash)
-- KEYS[7]  retries of stock workers (set): RQ counts these as failed until they are released, so that they are in the
--          schedule and in the failed registry
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
-- ARGV[14] queue name
-- then eight a task:
--   id, 'finished' or 'failed' or 'retry', outcome (JSON on one line; '' for none), error in words,
--   counter ('kind:status'), end of the delivery in Unix seconds, member of the statistics,
--   what is rare, as JSON, or '': {"again": true after the first delivery, "unbegun": true where the claim led to no
--   delivery, "delay": seconds until a retry, "remember": seconds for which the id, which the client chose, is
--   remembered, "foreign": true for a job that another program put into Redis, "stock": true from a stock RQ worker}
--
-- Returns {how many were settled, id of a dead task that was dropped for want of room, …}. A task whose lease was
-- taken back meanwhile is somebody else's by now and is left alone; so a batch may be sent again when its reply was
-- lost.
local call, ARGV = redis.call, ARGV -- names of its own are found faster, and this runs for every task
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local settled = 0
local finished, failed, retried, figures = {}, {}, {}, {}
local foreign = 0 -- of the finished
local earliest = math.huge
local expiry = string.format('%.3f', now + ARGV[5] + ARGV[8])
local forever = string.format('%.3f', now + ARGV[8])

local function all_outcomes(key, newest)
  return newest_lines((call('HGET', key, 'outcomes') or '') .. '\n' .. newest, ARGV[12])
end

local leases = {}
for i = 15, #ARGV, 8 do
  leases[#leases + 1] = ARGV[i] .. ':' .. ARGV[2]
end
local held = call('ZMSCORE', KEYS[1], unpack(leases))
call('ZREM', KEYS[1], unpack(leases))

for i = 15, #ARGV, 8 do
  local id, fate, outcomes, counter = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 4]
  if held[(i - 7) / 8] then
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
    if rare and rare.foreign then
      call('HSET', key, 'foreign', 1)
      foreign = foreign + (fate == 'finished' and 1 or 0)
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
      if rare.stock then
        call('HSET', key, 'status', 'failed', 'exc_info', ARGV[i + 3])
        call('ZADD', KEYS[3], forever, id)
        call('SADD', KEYS[7], id)
      end
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

local function oldest_beyond(registry, most)
  local over = math.min(call('ZCARD', registry) - most, MOST_DROPPED)
  return over > 0 and call('ZRANGE', registry, 0, over - 1) or {}
end

local lost = {}
if #failed > 0 then
  call('ZADD', KEYS[3], unpack(failed))
  if ARGV[9] ~= '0' then
    local accepted = 0
    for _, id in ipairs(oldest_beyond(KEYS[3], ARGV[9])) do
      if call('SISMEMBER', KEYS[7], id) == 0 then -- else it is not dead: it waits to be tried again
        lost[#lost + 1] = id
        accepted = accepted + (is_foreign(ARGV[1] .. id) and 0 or 1)
      end
    end
    if #lost > 0 then
      unlink_jobs(lost, ARGV[1], ARGV[13])
      call('ZREM', KEYS[3], unpack(lost))
    end
    if accepted > 0 then
      call('HINCRBY', KEYS[6], 'dropped:' .. ARGV[14], accepted)
    end
  end
end
if #finished > 0 then
  call('ZADD', KEYS[2], unpack(finished))
  local forgotten = oldest_beyond(KEYS[2], ARGV[4])
  if #forgotten > 0 then
    unlink_jobs(forgotten, ARGV[1], ARGV[13])
    call('ZREMRANGEBYRANK', KEYS[2], 0, #forgotten - 1)
  end
  if #finished / 2 > foreign then
    call('HINCRBY', KEYS[6], 'delivered:' .. ARGV[14], #finished / 2 - foreign)
  end
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
  if string.find(counter, ':expired', 1, true) then
    call('HINCRBY', KEYS[6], 'expired:' .. ARGV[14], #members / 2)
  end
  call('ZADD', key, unpack(members))
  call('ZREMRANGEBYRANK', key, 0, -1 - ARGV[6])
  call('ZREMRANGEBYSCORE', key, '-inf', now - ARGV[7])
end
return {settled, unpack(lost)}
