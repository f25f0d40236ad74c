-- Moves due jobs from the schedule to their queues, and admits tasks of flows whose instant has come. Never early: due is
-- compared with Redis's own clock.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
-- Needs flows.lua.
-- Needs admission.lua.
-- Needs flow_of_link.lua.
--
-- KEYS (ReleaseKeys in schedule.py)
--   SCHEDULE       sorted set
--   QUEUES         set of queue keys
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua)
--   LEDGER         hash
--   FLOWS          flows by the instant of the next look (sorted set; see flows.lua)
-- ARGV (ReleaseArguments)
--   LIMIT  most jobs to move
--   LOOKS  flows to look at, at most
--
-- Returns (Released)
--   MOVED    how many jobs were moved
--   WAIT     seconds until the next job is due, or a flow is to be looked at; '' if none waits
--   FOREIGN  ids of foreign jobs that are due
--   LOOKED   how many flows were looked at because their instant had come
-- A foreign job was written by rq-scheduler's own API (such jobs have created_at and no attempt). It may repeat or have
-- a cron expression, so it stays in the schedule, and the caller moves it by rq-scheduler's rules.
local LOOK_GAP_SECONDS = 0.002
local NEWEST = 100 -- of the due tasks that a release looks at, if it cannot move all
local call = redis.call -- a local is faster, and this runs for every task
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local head = call('ZRANGEBYSCORE', SCHEDULE, '-inf', string.format('%.6f', now), 'WITHSCORES', 'LIMIT', 0, LIMIT)
local by_queue, jobs, moved, foreign = {}, {}, {}, {}
local touched, held = {}, {}
local count, deleted = 0, 0
local last_field = #head > 0 and any_flow_of_link() and 'data' or 'extra'
-- Notes jobs, as pairs of id and due. Of the newest ones, which come before others that are due, it takes only those of no flow.
local function look_at(pairs_of_jobs, are_newest)
  for i = 1, #pairs_of_jobs, 2 do
    local id = pairs_of_jobs[i]
    local job = call('HMGET', JOB_PREFIX .. id, 'origin', 'created_at', 'attempt', 'status', 'extra', last_field)
    local created_at, extra = job[2], job[5]
    local name = false
    if extra then
      name = flow_in(extra)
    elseif last_field == 'data' and job[1] then
      name = flow_of_link(job[6])
    end
    local is_left = are_newest and (created_at or name) -- in the schedule until its turn
    if created_at and not job[3] and not is_left then
      foreign[#foreign + 1] = id
    elseif not is_left then
      count = count + 1
      moved[count], jobs[count] = id, job
      want_flow(name)
      job[2], job[6] = pairs_of_jobs[i + 1], name
    end
  end
end

look_at(head, false)
if #head == 2 * LIMIT and last_field == 'data' then
  -- Tasks of a flow in trouble may be in front of many others.
  local last = head[#head]
  look_at(call('ZREVRANGEBYSCORE', SCHEDULE, string.format('%.6f', now), '(' .. last, 'WITHSCORES', 'LIMIT', 0, NEWEST), true)
end
if #moved > 0 then
  -- The first write must be one that frees memory: Redis does not stop a script that has begun to write when it runs
  -- out of memory.
  call('ZREM', SCHEDULE, unpack(moved))
end
read_simple_flows()
for i, id in ipairs(moved) do
  local job = jobs[i]
  local origin, due, is_first, status, extra, name = job[1], job[2], not job[3], job[4], job[5], job[6]
  if origin and not is_first and (status == 'queued' or status == 'started') then
    call('SREM', STOCK_RETRIES, id) -- a retry of a stock worker, which RQ's own tools have already put into the queue
  elseif origin then
    local key = JOB_PREFIX .. id
    local flow, rank, rule, _
    if extra then
      name, rank, _, rule = flow_in(extra)
      flow = name and flow_by_rule(name, rule, now)
      if flow and not is_first then
        if flow.ordered and call('ZSCORE', flow.slots, id) then
          -- A retry has kept its slot.
          if is_closed(flow, id, now) then
            call('ZREM', flow.slots, id)
          else
            flow = false
          end
        end
        due = flow and call('HGET', key, 'due') or due -- its place among the others
      end
    elseif name then
      flow = flow_of(name)
      if flow then
        call('HSET', key, 'extra', extra_of(name))
      end
    end
    if flow and enters(flow, id, now) then
      touched[flow.name] = flow
      flow = false
    end
    if is_first then
      call('HSET', key, 'status', flow and 'deferred' or 'queued', 'due', due)
    else
      call('HSET', key, 'status', flow and 'deferred' or 'queued') -- due stays the due instant of the first delivery
    end
    if status == 'failed' then
      call('ZREM', FAILED_PREFIX .. origin, id) -- RQ counts it there until it is tried again
      call('SREM', STOCK_RETRIES, id)
      clear_error(key)
    end
    if flow then
      hold(flow, id, rank, due, origin, held)
      touched[flow.name] = flow
    else
      local ids = by_queue[origin]
      if not ids then
        ids = {}
        by_queue[origin] = ids
      end
      ids[#ids + 1] = id
    end
  else
    deleted = deleted + 1 -- by another program, while it waited
  end
end
if deleted > 0 then
  call('HINCRBY', LEDGER, 'deleted:', deleted)
end
for origin, ids in pairs(by_queue) do
  call('SADD', QUEUES, QUEUE_PREFIX .. origin)
  call('RPUSH', QUEUE_PREFIX .. origin, unpack(ids))
end
local due_looks, is_look = call('ZRANGEBYSCORE', FLOWS, '-inf', string.format('%.6f', now), 'LIMIT', 0, LOOKS), {}
for _, name in ipairs(due_looks) do
  local flow = flow_of(name)
  if flow then
    is_look[name] = true
    touched[name] = flow
  else
    call('ZREM', FLOWS, name)
  end
end
local tie = #head == 2 * LIMIT and tonumber(head[#head]) or nil
for name, flow in pairs(touched) do
  set_partial(flow, tie)
  if is_look[name] or flow.joining then
    admit(flow, now, held, is_look[name])
  else
    write_flow(flow)
  end
  if flow.partial then
    looks[name] = now -- the next release looks at it
  end
end
finish_flows(held)
local earliest = tonumber(call('ZRANGE', SCHEDULE, #foreign, #foreign, 'WITHSCORES')[2]) or math.huge
local look = tonumber(call('ZRANGE', FLOWS, 0, 0, 'WITHSCORES')[2]) or math.huge
look = look < SIMPLE_FLOW and look or math.huge
if #due_looks > 0 and #due_looks < tonumber(LOOKS) then
  look = math.max(look, now + LOOK_GAP_SECONDS) -- so that looks at many flows come in batches
end
earliest = math.min(earliest, look)
local wait = earliest < math.huge and string.format('%.6f', math.max(0, earliest - now)) or ''
return {[MOVED] = #moved, [WAIT] = wait, [FOREIGN] = foreign, [LOOKED] = #due_looks}
