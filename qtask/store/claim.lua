-- Claims tasks from a queue for one worker. Each task gets a lease in RQ's started registry.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
-- Needs requeued.lua.
-- Needs flows.lua.
-- Needs admission.lua.
-- Needs flow_of_link.lua.
-- Needs timeout_of.lua.
--
-- KEYS (ClaimKeys in leases.py)
--   QUEUE            list
--   STARTED, FAILED  registries of the queue
--   STOCK_RETRIES    retries of stock workers (set; see settle.lua)
--   LEDGER           hash
--   SCHEDULE         sorted set
--   FLOWS            flows by the instant of the next look (sorted set; see flows.lua)
--   QUEUES           set of queue keys
-- ARGV (ClaimArguments)
--   LIMIT            tasks to claim at most
--   BYTES_LIMIT      bytes of dicts after which no more tasks are claimed
--   TOKEN            token of the worker, used as execution id of its claims
--   QUEUE_NAME       name of the queue
--   MARGIN_SECONDS   by which a lease is longer than the task's timeout
--   KNOWN_VERSION    see VERSION below
--   DEFAULT_TIMEOUT  timeout in seconds of a job that has none
--   OUTCOMES_KEEP    outcomes to keep in the history of a dead task that RQ's own tools put back into the queue
--
-- Returns (ClaimReply) NOW in Unix seconds, four lists with an entry for each task:
--   IDS
--   ATTEMPTS  number of this attempt, from 1; negative for a task that was dead and has been retried, because its first
--             delivery was before that
--   DUES      Unix seconds, or '' if a stock rqscheduler released the task, which does not store it
--   DATA      of the job
-- TIMEOUTS has for each task whose timeout adapts its index in these lists, from 0, and then the seconds, '' if they are
-- not known; and FLOW_NAMES has for each task of a flow its index in these lists, from 0, and then the name of the flow.
-- A task whose flow has reached its limits since it was queued is not claimed: it waits in its flow.
-- VERSION tells whether more flows have got state that tasks belong to without naming them. If it is not KNOWN_VERSION,
-- DESTINATIONS has their names. The worker parks what it has claimed for them.
-- PAUSED is 1 if the queue is paused; then nothing is claimed.
local LOOK_LIMIT = 750 -- tasks that one claim looks at
local DESTINATIONS_LIMIT = 1000 -- with more of them, only links that are written as the names of flows are found
local NEWEST_SHARE = 0.2 -- of a claim
local call = redis.call -- a local is faster, and this runs for every task
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local leases = {}
local ids, attempts, dues, datas, names, timeouts = {}, {}, {}, {}, {}, {}
local version = tonumber(call('GET', FLOW_VERSION) or 0)
local touched, charged, held = {}, {}, {} -- flows to admit from; whose tokens were taken; tasks that wait now, by queue
local claimed_at = string.format('%.0f', now + FOREVER_SECONDS)
local count, held_count = 0, 0
-- Ends of leases by timeout, which is the same for most tasks. Whole seconds are cheap to write and read.
local ends = {}
local room = tonumber(BYTES_LIMIT)
local deleted = 0
-- Reads the jobs that were popped until they have more bytes than there is room for, and puts the others back.
local function read_jobs(popped)
  local jobs, bytes = {}, 0
  for position, id in ipairs(popped) do
    if bytes >= room then
      for i = #popped, position, -1 do
        call('LPUSH', QUEUE, popped[i])
      end
      break
    end
    -- If another program has put a key of another type there, it is skipped and does not break the whole batch.
    local job = redis.pcall('HMGET', JOB_PREFIX .. id, 'data', 'attempt', 'timeout', 'due', 'exc_info', 'extra')
    if not job.err and job[1] then
      bytes = bytes + #job[1]
      local name
      if job[6] then
        name = flow_in(job[6])
      elseif version > 0 and any_flow_of_link() then
        name = flow_of_link(job[1])
        job.link_name = name
      end
      want_flow(name)
    end
    jobs[position] = job
  end
  read_simple_flows()
  return jobs
end

-- Takes out of the queue what may be claimed of the tasks that were popped, in this order.
local function take(popped)
  local jobs = read_jobs(popped)
  for position, job in ipairs(jobs) do
    if not job.err then
      local id = popped[position]
      local key = JOB_PREFIX .. id
      local data, attempt, timeout, due, error, extra = job[1], job[2], job[3], job[4], job[5], job[6]
      local flow, name, rank, timed, rule
      if data and extra then
        name, rank, timed, rule = flow_in(extra)
        flow = name and flow_by_rule(name, rule, now)
      elseif job.link_name then
        name = job.link_name
        flow = flow_of(name)
        name = flow and name
      end
      local slot
      if flow and (flow.spacing or is_closed(flow, id, now)) then
        slot = call('ZSCORE', flow.slots, id)
      elseif flow then
        -- It is there already with this score if it was claimed, given back and claimed again in the same second.
        slot = call('ZADD', flow.slots, 'XX', 'CH', claimed_at, id) == 1 or call('ZSCORE', flow.slots, id)
      end
      if flow and not (slot and take_token(flow, id, now)) then
        if slot then
          call('ZREM', flow.slots, id)
        end
        if extra then
          call('HSET', key, 'status', 'deferred')
        else
          call('HSET', key, 'status', 'deferred', 'extra', extra_of(name))
        end
        held_count = held_count + 1
        hold(flow, id, rank, due or now, QUEUE_NAME, held)
        touched[name] = flow
      elseif data then
        attempt = (tonumber(attempt) or 0) + 1
        local has_history = error == ''
        if error and not has_history then
          local starts_over
          starts_over, has_history = requeued(id, key, FAILED, STOCK_RETRIES, SCHEDULE, OUTCOMES_KEEP)
          attempt = starts_over and 1 or attempt
        end
        call('HSET', key, 'status', 'started', 'attempt', attempt)
        timeout = tonumber(timeout) or DEFAULT_TIMEOUT
        if not ends[timeout] then
          ends[timeout] = string.format('%.0f', math.ceil(now + timeout + MARGIN_SECONDS + FOREVER_SECONDS))
        end
        leases[#leases + 1] = ends[timeout]
        leases[#leases + 1] = id .. ':' .. TOKEN
        count = count + 1
        ids[count] = id
        attempts[count] = has_history and -attempt or attempt
        dues[count] = due or ''
        datas[count] = data
        if name then
          names[#names + 1] = count - 1
          names[#names + 1] = name
        end
        if timed then
          timeouts[#timeouts + 1] = count - 1
          timeouts[#timeouts + 1] = timeout_of(name)
        end
        if flow and flow.spacing then
          call('ZADD', flow.slots, claimed_at, id)
          if is_late(flow, tonumber(slot), now) then
            touched[name] = flow
          else
            charged[name] = flow
          end
        end
        room = room - #data
      else
        deleted = deleted + 1 -- by another program, while it was queued
      end
    end
  end
end

local paused = call('SISMEMBER', PAUSED_QUEUES, QUEUE_NAME)
local newest = math.floor(LIMIT * NEWEST_SHARE)
if paused == 0 and version > 0 and newest > 0 and any_flow_of_link() and call('LLEN', QUEUE) > 2 * LIMIT then
  -- Tasks of a flow in trouble may fill the queue, so it takes some of the newest, too, which would wait behind them.
  take(call('RPOP', QUEUE, newest) or {})
end
take(paused == 0 and count < tonumber(LIMIT) and call('LPOP', QUEUE, LIMIT - count) or {})
-- If tasks of flows at their limits stand before others, it looks further, but not for long: Redis answers nobody else.
local looked = tonumber(LIMIT)
while held_count > 0 and count < tonumber(LIMIT) and room > 0 and looked < LOOK_LIMIT do
  local popped = call('LPOP', QUEUE, LIMIT - count)
  if not popped then
    break
  end
  looked = looked + #popped
  take(popped)
end
if deleted > 0 then
  call('HINCRBY', LEDGER, 'deleted:' .. QUEUE_NAME, deleted)
end
if #leases > 0 then
  call('ZADD', STARTED, unpack(leases))
end
for _, flow in pairs(charged) do
  write_flow(flow)
end
if next(touched) then
  admit_from(touched, now, held)
end
local destinations = {}
if version ~= tonumber(KNOWN_VERSION) and call('SCARD', FLOW_DESTINATIONS) <= DESTINATIONS_LIMIT then
  destinations = call('SMEMBERS', FLOW_DESTINATIONS)
end
return {[NOW] = string.format('%.6f', now), [IDS] = ids, [ATTEMPTS] = attempts, [DUES] = dues, [DATA] = datas,
  [FLOW_NAMES] = names, [TIMEOUTS] = timeouts, [VERSION] = version,
  [DESTINATIONS] = destinations,
  [PAUSED] = paused}
