-- Claims tasks from a queue for one worker. Each task gets a lease in RQ's started registry.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
-- Needs requeued.lua.
-- Needs flows.lua.
-- Needs flow_of_link.lua.
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
-- and FLOW_NAMES, which has for each task of a flow its index in these lists, from 0, and then the name of the flow.
-- A task whose flow has reached its limits since it was queued is not claimed: it waits in its flow.
-- VERSION tells whether more flows have got state that tasks belong to without naming them. If it is not KNOWN_VERSION,
-- DESTINATIONS has their names. The worker parks what it has claimed for them.
local call = redis.call -- a local is faster, and this runs for every task
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local leases = {}
local ids, attempts, dues, datas, names = {}, {}, {}, {}, {}
local version = tonumber(call('GET', FLOW_VERSION) or 0)
local touched, held = {}, {}
local claimed = {} -- by key of the slots of a flow: those of the tasks that are claimed
local count = 0
-- Ends of leases by timeout, which is the same for most tasks. Whole seconds are cheap to write and read.
local ends = {}
local room = tonumber(BYTES_LIMIT)
local deleted = 0
local popped = call('LPOP', QUEUE, LIMIT) or {}
for position, id in ipairs(popped) do
  if room <= 0 then
    for i = #popped, position, -1 do
      call('LPUSH', QUEUE, popped[i])
    end
    break
  end
  local key = JOB_PREFIX .. id
  -- If another program has put a key of another type there, it is skipped and does not break the whole batch.
  local job = redis.pcall('HMGET', key, 'data', 'attempt', 'timeout', 'due', 'exc_info', 'extra')
  if not job.err then
    local data, attempt, timeout, due, error, extra = job[1], job[2], job[3], job[4], job[5], job[6]
    local flow, name, rank, rule
    if data and extra then
      name, rank, rule = flow_in(extra)
      flow = name and flow_by_rule(name, rule, now)
    elseif data and version > 0 then
      name = flow_of_link(data)
      flow = name and flow_of(name)
      if flow then
        call('HSET', key, 'extra', '{"flow":' .. cjson.encode(name) .. '}')
      else
        name = nil
      end
    end
    if flow and not (call('ZSCORE', flow.slots, id) and take_token(flow, now)) then
      call('HSET', key, 'status', 'deferred')
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
      if flow then
        local slots = claimed[flow.slots] or {}
        claimed[flow.slots] = slots
        slots[#slots + 1] = math.floor(now) + FOREVER_SECONDS
        slots[#slots + 1] = id
        touched[name] = flow.spacing and flow or touched[name]
      end
      room = room - #data
    else
      deleted = deleted + 1 -- by another program, while it was queued
    end
  end
end
if deleted > 0 then
  call('HINCRBY', LEDGER, 'deleted:' .. QUEUE_NAME, deleted)
end
if #leases > 0 then
  call('ZADD', STARTED, unpack(leases))
end
for key, slots in pairs(claimed) do
  call('ZADD', key, unpack(slots))
end
if next(touched) then
  local before = tonumber(call('ZRANGE', FLOWS, 0, 0, 'WITHSCORES')[2]) or math.huge
  local earliest = math.huge
  for _, flow in pairs(touched) do
    earliest = math.min(earliest, admit(flow, now, held))
  end
  wake_for(earliest, before)
  finish_flows(held)
end
return {[NOW] = string.format('%.6f', now), [IDS] = ids, [ATTEMPTS] = attempts, [DUES] = dues, [DATA] = datas,
  [FLOW_NAMES] = names, [VERSION] = version,
  [DESTINATIONS] = version == tonumber(KNOWN_VERSION) and {} or call('SMEMBERS', FLOW_DESTINATIONS)}
