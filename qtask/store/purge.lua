-- Cancels tasks of one queue: those at its head, and tasks that wait in flows. Clients may use their ids again.
-- Needs is_foreign.lua.
-- Needs unlink_jobs.lua.
-- Needs flows.lua.
-- Needs admission.lua.
--
-- KEYS (PurgeKeys in queues.py)
--   QUEUE          list
--   FAILED         registry of the queue
--   SCHEDULE       sorted set
--   LEDGER         hash
--   STOCK_RETRIES  retries of stock workers (set; see settle.lua)
--   FLOWS          flows by the instant of the next look (sorted set; see flows.lua)
-- ARGV (PurgeArguments)
--   QUEUE_NAME  name of the queue
--   LIMIT       ids to take from the head of the queue
-- then ids of tasks that wait in flows; those that wait no more, or are not of this queue, are left alone
--
-- Returns (Purged)
--   TAKEN      how many ids were taken from the queue
--   CANCELLED  how many tasks were cancelled, also those of other programs
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local KEPT = {started = true, finished = true, failed = true, stopped = true}
local taken = tonumber(LIMIT) > 0 and redis.call('LPOP', QUEUE, LIMIT) or {}
local gone, known, touched, held = {}, {}, {}, {}
local accepted, deleted = 0, 0

local function cancel(id, in_queue)
  local key = JOB_PREFIX .. id
  local data, status, origin, extra = unpack(redis.call('HMGET', key, 'data', 'status', 'origin', 'extra'))
  local name, rank, flow
  if extra then
    name, rank = flow_in(extra)
    flow = name and flow_of(name)
  end
  if not in_queue then
    if not (data and flow and origin == QUEUE_NAME) then
      return
    end
    if redis.call('ZREM', WAITING_PREFIX .. flow.name, rank and rank .. ':' .. id or id) == 0 then
      return
    end
    held[QUEUE_NAME] = (held[QUEUE_NAME] or 0) - 1
  elseif not data then
    deleted = deleted + 1 -- by another program, while it was queued
    return
  elseif KEPT[status] then
    return -- another program has put its id into the queue
  end
  if flow then
    redis.call('ZREM', flow.slots, id)
    touched[name] = flow
  end
  known[id] = true
  gone[#gone + 1] = id
  accepted = accepted + (is_foreign(key) and 0 or 1)
end

for _, id in ipairs(taken) do
  if not known[id] then
    cancel(id, true)
  end
end
for _, id in ipairs({unpack(ARGV, FIRST)}) do
  if not known[id] then
    cancel(id, false)
  end
end
if #gone > 0 then
  redis.call('ZREM', SCHEDULE, unpack(gone)) -- retries of stock workers, which RQ's own tools have put into the queue
  redis.call('ZREM', FAILED, unpack(gone))
  redis.call('SREM', STOCK_RETRIES, unpack(gone))
  unlink_jobs(gone)
end
if accepted > 0 then
  redis.call('HINCRBY', LEDGER, 'cancelled:' .. QUEUE_NAME, accepted)
end
if deleted > 0 then
  redis.call('HINCRBY', LEDGER, 'deleted:' .. QUEUE_NAME, deleted)
end
if next(touched) then
  admit_from(touched, now, held)
end
return {[TAKEN] = #taken, [CANCELLED] = #gone}
