-- Settles outcomes of one worker: each task moves from the started registry to the finished registry, to the failed
-- registry (the dead letters) or, for a retry, to the schedule. Its figures are added to the statistics in the same
-- step.
-- Needs newest_lines.lua.
-- Needs unlink_jobs.lua.
-- Needs is_foreign.lua.
-- Needs flows.lua.
-- Needs admission.lua.
-- Needs note_destination.lua.
-- Needs flow_outcomes.lua.
-- Needs adapt_parallel.lua.
-- Needs adapt_timeout.lua.
--
-- KEYS (SettleKeys in leases.py)
--   STARTED, FINISHED, FAILED  registries of the queue
--   QUEUE          list
--   COUNTERS       outcomes by type and status (hash)
--   SCHEDULE       sorted set
--   LEDGER         hash
--   STOCK_RETRIES  retries of stock workers (set). RQ counts them as failed until they are released, so they are in both
--                  the schedule and the failed registry
--   FLOWS          flows by the instant of the next look (sorted set; see flows.lua)
--   QUEUES         set of queue keys
-- ARGV (SettleArguments)
--   TOKEN                    token of the worker
--   QUEUE_NAME               name of the queue
--   RETENTION_COUNT          delivered tasks to keep
--   RETENTION_SECONDS        for which they are kept, until a scheduler forgets them
--   STATS_RETENTION_COUNT    outcomes of one type to keep in the statistics
--   STATS_RETENTION_SECONDS  for which they are kept
--   DEAD_RETENTION_COUNT     dead letters to keep, 0 for all of them
--   OUTCOMES_KEEP            outcomes of one task to keep
--   BREAKER_OUTCOMES         outcomes of a flow from which its circuit breaker opens, 0 for never; see flow_outcomes.lua
--   FLOW_PARALLEL_LIMIT      most deliveries in flight of a flow with `parallel: auto`
--   TIMEOUT_LIMIT            longest timeout in seconds of a task with `timeout: auto`
-- then for each task (Settlement)
--   ID
--   FATE     'finished', 'failed' or 'retry'
--   OUTCOME  JSON on one line, '' for none
--   ERROR    the error in words
--   COUNTER  'type:status', '' if the outcome is not counted
--   ENDED    end of the delivery in Unix seconds
--   MEMBER   member of the statistics
--   OPTIONS  what only some settlements have, as JSON (SettleOptions), or ''
--
-- Returns (Settled)
--   SETTLED  how many tasks were settled
--   DROPPED  ids of dead letters that were removed because there are more than DEAD_RETENTION_COUNT
-- A task whose lease has been reclaimed belongs to another worker and is not changed. So a batch may be sent again if
-- its reply was lost. If a task was to be retried, this worker may have claimed it once more, and that reply may be
-- lost as well: then the lease is that of a later attempt, which never began. Such a task goes back to the queue, as in
-- nack.lua.
local call, ARGV = redis.call, ARGV -- locals are faster, and this runs for every task
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local settled = 0
local back = {}
local finished, failed, retried, figures = {}, {}, {}, {}
local foreign = 0 -- of the finished
local earliest = math.huge
local touched = {}
local freed = {} -- by key of the slots of a flow: ids
local expiry = string.format('%.3f', now + RETENTION_SECONDS + FOREVER_SECONDS)
local forever = string.format('%.3f', now + FOREVER_SECONDS)

local function all_outcomes(key, newest)
  return newest_lines((call('HGET', key, 'outcomes') or '') .. '\n' .. newest, OUTCOMES_KEEP)
end

local options_read = {[''] = false}

-- The options, or false if there are none but the name of the flow; and that name.
local function read_options(text)
  local options = options_read[text] -- those of many tasks are equal
  if options == nil then
    local name = only_flow_in(text)
    if name then
      return false, name
    end
    options = cjson.decode(text)
    options_read[text] = options
  end
  return options, options and options.flow
end

local leases = {}
for i = FIRST, #ARGV, WIDTH do
  leases[#leases + 1] = ARGV[i + ID] .. ':' .. TOKEN
  if ARGV[i + OPTIONS] ~= '' then
    local _, name = read_options(ARGV[i + OPTIONS])
    want_flow(name)
  end
end
read_simple_flows()
local held = call('ZMSCORE', STARTED, unpack(leases))
call('ZREM', STARTED, unpack(leases))

local position = 0
for i = FIRST, #ARGV, WIDTH do
  position = position + 1
  if held[position] then
    local id, fate, outcomes, counter = ARGV[i + ID], ARGV[i + FATE], ARGV[i + OUTCOME], ARGV[i + COUNTER]
    local key = JOB_PREFIX .. id
    local options, name = read_options(ARGV[i + OPTIONS])
    local attempt = options and options.attempt and call('HGET', key, 'attempt')
    if attempt and tonumber(attempt) ~= options.attempt then
      call('HSET', key, 'status', 'queued')
      call('HINCRBY', key, 'attempt', -1)
      back[#back + 1] = id
    else
      settled = settled + 1
      if options and options.unbegun then
        call('HINCRBY', key, 'attempt', -1) -- the claim counted a delivery
      end
      if options and options.again then
        outcomes = all_outcomes(key, outcomes)
        call('UNLINK', RESULTS_PREFIX .. id) -- left by an attempt of a stock worker; the outcomes have it all
      end
      if options and options.foreign then
        call('HSET', key, 'foreign', 1)
        foreign = foreign + (fate == 'finished' and 1 or 0)
      end
      if fate == 'finished' then
        call('HSET', key, 'status', 'finished', 'outcomes', outcomes)
        finished[#finished + 1] = expiry
        finished[#finished + 1] = id
        if options and options.remember then
          local due = call('HGET', key, 'due') or string.format('%.6f', now)
          call('SET', ID_PREFIX .. id, due, 'EX', options.remember)
        end
      elseif fate == 'retry' then
        local instant = now + options.delay
        call('HSET', key, 'status', 'scheduled', 'outcomes', outcomes)
        retried[#retried + 1] = string.format('%.6f', instant)
        retried[#retried + 1] = id
        earliest = math.min(earliest, instant)
        if options.stock then
          call('HSET', key, 'status', 'failed', 'exc_info', ARGV[i + ERROR])
          call('ZADD', FAILED, forever, id)
          call('SADD', STOCK_RETRIES, id)
        end
      else
        call('HSET', key, 'status', 'failed', 'outcomes', outcomes, 'exc_info', ARGV[i + ERROR])
        failed[#failed + 1] = forever
        failed[#failed + 1] = id
      end
      local flow = name and flow_of(name)
      if flow then
        if not (flow.ordered and fate == 'retry') then
          local ids = freed[flow.slots] or {}
          freed[flow.slots] = ids
          ids[#ids + 1] = id
        end
        if fate == 'finished' and not flow.has_limits then
          grow_share(flow)
        end
        if flow.adapts then
          note_delivery(flow, ARGV[i + MEMBER], ARGV[i + ENDED], options and options.health == 'bad', now)
        end
        -- Without such a limit, and without a rest, nothing was waiting for the slot.
        if (flow.parallel < math.huge or not flow.stays or flow.trips > 0) and not is_told_by_score(flow) then
          touched[name] = true
        end
        if flow.trips > 0 and flow.probe == id and not (options and options.unbegun) then
          note_probe(flow, options and options.health == 'bad', now)
        end
      end
      if options and name then
        if options.timed then
          note_duration(name, ARGV[i + MEMBER], ARGV[i + ENDED], now)
        end
        if options.health and BREAKER_OUTCOMES ~= '0' and not (flow and flow.trips > 0) then
          note_outcome(name, options.health == 'bad', now)
          touched[name] = true
        end
        if options.rest then
          rest(name, now + options.rest, 'asked', now)
          touched[name] = true
        end
      end
      if counter ~= '' then
        local members = figures[counter]
        if not members then
          members = {}
          figures[counter] = members
        end
        members[#members + 1] = ARGV[i + ENDED]
        members[#members + 1] = ARGV[i + MEMBER]
      end
    end
  end
end
if #back > 0 then
  call('LPUSH', QUEUE, unpack(back))
end
for key, ids in pairs(freed) do
  call('ZREM', key, unpack(ids))
end
if next(touched) then
  adapt_parallel(now)
  for name in pairs(touched) do
    touched[name] = flow_of(name) or nil
  end
  admit_from(touched, now, {})
end

keep_timeouts()

-- More than a batch can add, so that a lowered bound is reached, and few enough not to block Redis.
local DROP_LIMIT = 1000

local function oldest_beyond(registry, limit)
  local over = math.min(call('ZCARD', registry) - limit, DROP_LIMIT)
  return over > 0 and call('ZRANGE', registry, 0, over - 1) or {}
end

local dropped = {}
if #failed > 0 then
  call('ZADD', FAILED, unpack(failed))
  if DEAD_RETENTION_COUNT ~= '0' then
    local accepted = 0
    for _, id in ipairs(oldest_beyond(FAILED, DEAD_RETENTION_COUNT)) do
      if call('SISMEMBER', STOCK_RETRIES, id) == 0 then -- else it is not dead, but waits for a retry
        dropped[#dropped + 1] = id
        accepted = accepted + (is_foreign(JOB_PREFIX .. id) and 0 or 1)
      end
    end
    if #dropped > 0 then
      unlink_jobs(dropped)
      call('ZREM', FAILED, unpack(dropped))
    end
    if accepted > 0 then
      call('HINCRBY', LEDGER, 'dropped:' .. QUEUE_NAME, accepted)
    end
  end
end
if #finished > 0 then
  call('ZADD', FINISHED, unpack(finished))
  local forgotten = oldest_beyond(FINISHED, RETENTION_COUNT)
  if #forgotten > 0 then
    unlink_jobs(forgotten)
    call('ZREMRANGEBYRANK', FINISHED, 0, #forgotten - 1)
  end
  if #finished / 2 > foreign then
    call('HINCRBY', LEDGER, 'delivered:' .. QUEUE_NAME, #finished / 2 - foreign)
  end
end
if #retried > 0 then
  local head = call('ZRANGE', SCHEDULE, 0, 0, 'WITHSCORES')
  call('ZADD', SCHEDULE, unpack(retried))
  if earliest < (tonumber(head[2]) or math.huge) then
    call('PUBLISH', WAKE, string.format('%.6f', earliest))
  end
end
for counter, members in pairs(figures) do
  local key = STATS_PREFIX .. string.match(counter, '^[^:]*')
  call('HINCRBY', COUNTERS, counter, #members / 2)
  if string.find(counter, ':expired', 1, true) then
    call('HINCRBY', LEDGER, 'expired:' .. QUEUE_NAME, #members / 2)
  end
  call('ZADD', key, unpack(members))
  call('ZREMRANGEBYRANK', key, 0, -1 - STATS_RETENTION_COUNT)
  call('ZREMRANGEBYSCORE', key, '-inf', now - STATS_RETENTION_SECONDS)
end
return {[SETTLED] = settled, [DROPPED] = dropped}
