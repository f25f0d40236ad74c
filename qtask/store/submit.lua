-- Accepts a batch of tasks: each becomes a lean RQ job and an entry in the schedule. To keep waiting tasks small, the
-- job does not repeat what the schedule says (the due instant, and that the job is scheduled).
-- Needs note_destination.lua.
-- Needs set_limits.lua.
--
-- KEYS (SubmitKeys in submit.py)
--   SCHEDULE  sorted set
--   INBOX     stream; used only for tasks that came from it
--   NODE      key that names the holder of the sender's node number (string)
--   LEDGER    hash
--   FLOWS     flows by the instant of the next look (sorted set; see flows.lua)
-- ARGV (SubmitArguments)
--   QUEUE_NAME     name of the queue of tasks that name none
--   NONCE          nonce of the sender
--   SENT_BEFORE    '1' if the batch may have been sent before, else ''
-- then for each task (Submitted)
--   ID
--   BODY     JSON
--   MODE     'in': INSTANT is seconds from now; 'at': it is in Unix seconds; 'IN' and 'AT' if the client chose the id
--   INSTANT
--   OPTIONS  what only some tasks have, '' for nothing: seconds of RQ's timeout, '' for none; after a line break the field
--            extra of the job; after another one the fields of its flow that this task sets, as a JSON object, where ''
--            removes a field; and after another one the name of its queue
--   ENTRY    id of its entry in the inbox ('' if it came another way), and after a space the key to push its answer to
--
-- Returns an empty array if the node number no longer belongs to the sender; then nothing was done.
-- Else one string per task:
--   its due instant in Unix seconds;
--   '=' and the due instant of the first task, if the id that the client chose is already known;
--   '!' if another task has the id that QTask made: this task was not accepted and needs another id;
--   '' if its inbox entry was already taken.
-- A batch whose reply was lost may be sent again, by the same sender and with the same ids. A task with one of these
-- ids
-- then counts as the same task only if it has the same body as well.
if redis.call('GET', NODE) ~= NONCE then
  return {}
end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local head = redis.call('ZRANGE', SCHEDULE, 0, 0, 'WITHSCORES')
local earliest = tonumber(head[2]) or math.huge
local wake = false
local flows, limits_of_flows = {}, {} -- which tasks set
local last_limits = {} -- by flow; most tasks of a flow in a batch set the same
local dues, entries = {}, {}
local duplicates = 0
local elsewhere = {} -- how many tasks were accepted for each queue that they name

local function due_of_known(id, key)
  local attempt, due = unpack(redis.call('HMGET', key, 'attempt', 'due'))
  if attempt and due then
    return due -- the schedule may hold the instant of its retry
  end
  return redis.call('ZSCORE', SCHEDULE, id) or due or string.format('%.6f', now)
end

-- The timeout, the field extra, the fields of the flow and the queue; '' for each that is left out.
local function parts_of(options)
  if string.byte(options) == 10 then -- most tasks with a flow have no timeout and no queue
    local last = string.find(options, '\n', 2, true)
    if not last then
      return '', string.sub(options, 2), '', ''
    elseif not string.find(options, '\n', last + 1, true) then
      return '', string.sub(options, 2, last - 1), string.sub(options, last + 1), ''
    end
  end
  return string.match(options, '^([^\n]*)\n?([^\n]*)\n?([^\n]*)\n?(.*)$')
end

-- The id as the client knows it; see stored_id in ids.py.
local function id_as_json(id)
  if string.sub(id, 1, 3) ~= '0__' then
    return '"' .. id .. '"'
  end
  local chosen = string.gsub(string.sub(id, 4), '_(%x%x)', function(code)
    return string.char(tonumber(code, 16))
  end)
  return cjson.encode(chosen)
end

local function push_answer(reply, id, due, more)
  local answer = '{"ok":true,"id":' .. id_as_json(id) .. ',"due":' .. due .. more .. '}'
  if type(redis.pcall('RPUSH', reply, answer)) == 'number' then -- a key of another type gets no answer
    redis.call('EXPIRE', reply, INBOX_REPLY_SECONDS)
  end
end

-- Checking all ids at once is cheaper than one by one. But a client may choose an id that QTask makes in the same
-- batch, so a batch with chosen ids is checked id by id.
local jobs, all_new = {}, true
for i = FIRST, #ARGV, WIDTH do
  jobs[#jobs + 1] = JOB_PREFIX .. ARGV[i + ID]
  all_new = all_new and (ARGV[i + MODE] == 'in' or ARGV[i + MODE] == 'at')
end
all_new = all_new and redis.call('EXISTS', unpack(jobs)) == 0

for i = FIRST, #ARGV, WIDTH do
  local id, mode, due = ARGV[i + ID], ARGV[i + MODE], tonumber(ARGV[i + INSTANT])
  local key = jobs[#dues + 1]
  local data = '["qtask.do",0,[' .. ARGV[i + BODY] .. '],{}]'
  local chosen = mode == 'IN' or mode == 'AT'
  if mode == 'in' or mode == 'IN' then
    due = now + due
  elseif due < now then
    due = now
  end
  local entry, reply = ARGV[i + ENTRY], ''
  if entry ~= '' then
    entry, reply = string.match(entry, '^(%S+) ?(.*)$')
  end
  local known, sent_before, foreign
  if chosen then
    known = redis.call('GET', ID_PREFIX .. id)
    if not known and redis.call('EXISTS', key) == 1 then
      known = due_of_known(id, key)
    end
  elseif not all_new and redis.call('EXISTS', key) == 1 then
    sent_before = SENT_BEFORE == '1' and redis.call('HGET', key, 'data') == data
    foreign = not sent_before
  end
  if foreign then
    dues[#dues + 1] = '!'
  elseif sent_before then
    dues[#dues + 1] = due_of_known(id, key)
  else
    local taken = entry ~= '' and redis.call('XACK', INBOX, INBOX_GROUP, entry) == 0
    if entry ~= '' and not taken then
      redis.call('XDEL', INBOX, entry)
    end
    if known then
      dues[#dues + 1] = '=' .. known
      duplicates = duplicates + 1
      if reply ~= '' and not taken then
        push_answer(reply, id, known, ',"duplicate":true')
      end
    elseif taken then
      dues[#dues + 1] = ''
    else
      local text = string.format('%.6f', due)
      local options = ARGV[i + OPTIONS]
      if options == '' then
        redis.call('HSET', key, 'data', data, 'origin', QUEUE_NAME)
      else
        -- Those of many tasks are equal.
        local timeout, extra, limits, queue = parts_of(options)
        if queue == '' then
          queue = QUEUE_NAME
        elseif queue ~= QUEUE_NAME then
          elsewhere[queue] = (elsewhere[queue] or 0) + 1
        end
        if extra == '' and timeout == '' then
          redis.call('HSET', key, 'data', data, 'origin', queue)
        elseif extra == '' then
          redis.call('HSET', key, 'data', data, 'origin', queue, 'timeout', timeout)
        elseif timeout == '' then
          redis.call('HSET', key, 'data', data, 'origin', queue, 'extra', extra)
        else
          redis.call('HSET', key, 'data', data, 'origin', queue, 'timeout', timeout, 'extra', extra)
        end
        if limits ~= '' then
          local flow = string.match(extra, '^{"flow":"([^"\\]*)"') or cjson.decode(extra).flow
          if last_limits[flow] ~= limits then
            last_limits[flow] = limits
            flows[#flows + 1] = flow
            limits_of_flows[#flows] = limits
          end
        end
      end
      if chosen then
        redis.call('HSET', key, 'due', text) -- a chosen id does not tell when the task was accepted
      end
      if reply ~= '' then
        push_answer(reply, id, text, '')
      end
      entries[#entries + 1] = text
      entries[#entries + 1] = id
      dues[#dues + 1] = text
      if due < earliest then
        earliest = due
        wake = true
      end
    end
  end
end
if #flows > 0 then
  local scores = redis.call('ZMSCORE', FLOWS, unpack(flows))
  local is_set = {}
  for i, flow in ipairs(flows) do
    set_limits(flow, limits_of_flows[i], now, false, not is_set[flow] and scores[i])
    is_set[flow] = true
  end
end
if #entries > 0 then
  redis.call('ZADD', SCHEDULE, unpack(entries))
  local here = #entries / 2
  for queue, count in pairs(elsewhere) do
    redis.call('HINCRBY', LEDGER, 'accepted:' .. queue, count)
    here = here - count
  end
  if here > 0 then
    redis.call('HINCRBY', LEDGER, 'accepted:' .. QUEUE_NAME, here)
  end
end
if duplicates > 0 then
  redis.call('HINCRBY', LEDGER, 'duplicates:' .. QUEUE_NAME, duplicates)
end
if wake then
  redis.call('PUBLISH', WAKE, string.format('%.6f', earliest))
end
return dues
