-- Accepts a batch of tasks: each becomes a lean RQ job and an entry in the schedule. What the schedule says by
-- itself (the due instant, and that the job is scheduled) is not repeated in the job: a waiting task is to be small.
--
-- KEYS[1]  schedule (sorted set)
-- KEYS[2]  inbox (stream); used only for tasks that came from it
-- ARGV[1]  prefix of job keys
-- ARGV[2]  queue name
-- ARGV[3]  channel that wakes schedulers
-- ARGV[4]  consumer group of the inbox
-- ARGV[5]  seconds after which a pushed answer expires
-- then six a task:
--   id, body (JSON), mode ('in': seconds from now, 'at': Unix seconds), seconds,
--   RQ timeout in seconds ('' for RQ's default), entry id in the inbox ('' when it came another way), and after it,
--   with a space between, the key that its answer is pushed to
--
-- Returns one string a task: its due instant in Unix seconds, or '' when its inbox entry was already taken.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local earliest = tonumber(head[2]) or math.huge
local wake = false
local dues, entries = {}, {}
for i = 6, #ARGV, 6 do
  local id, due = ARGV[i], tonumber(ARGV[i + 3])
  if ARGV[i + 2] == 'in' then
    due = now + due
  elseif due < now then
    due = now
  end
  local entry, reply = ARGV[i + 5], ''
  if entry ~= '' then
    entry, reply = string.match(entry, '^(%S+) ?(.*)$')
  end
  if entry ~= '' and redis.call('XACK', KEYS[2], ARGV[4], entry) == 0 then
    dues[#dues + 1] = ''
  else
    local text = string.format('%.6f', due)
    local key = ARGV[1] .. id
    redis.call('HSET', key, 'data', '["qtask.deliver",null,[' .. ARGV[i + 1] .. '],{}]', 'origin', ARGV[2])
    if ARGV[i + 4] ~= '' then
      redis.call('HSET', key, 'timeout', ARGV[i + 4])
    end
    if entry ~= '' then
      redis.call('XDEL', KEYS[2], entry)
    end
    if reply ~= '' then
      local answer = '{"ok":true,"id":"' .. id .. '","due":' .. text .. '}'
      if type(redis.pcall('RPUSH', reply, answer)) == 'number' then -- a key of another type gets no answer
        redis.call('EXPIRE', reply, ARGV[5])
      end
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
if #entries > 0 then
  redis.call('ZADD', KEYS[1], unpack(entries))
end
if wake then
  redis.call('PUBLISH', ARGV[3], string.format('%.6f', earliest))
end
return dues
