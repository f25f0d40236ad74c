-- Moves what is due from the schedule to its queues. Never early: due is compared with Redis's own clock.
-- Needs newest_lines.lua.
-- Needs start_over.lua.
--
-- KEYS[1]  schedule (sorted set)
-- KEYS[2]  set of queue keys
-- KEYS[3]  retries of stock workers (set; see settle.lua)
-- KEYS[4]  ledger (hash)
-- ARGV[1]  most jobs to move
-- ARGV[2]  prefix of job keys
-- ARGV[3]  prefix of queue keys
-- ARGV[4]  prefix of failed registries
--
-- Returns {how many moved, seconds until the next is due ('' when none waits), id of a foreign job, …}.
-- A foreign job is one that rq-scheduler's own API wrote (such jobs bear created_at and no attempt): it may
-- repeat or carry a cron line, so it stays in the schedule and the caller moves it by rq-scheduler's rules.
local call = redis.call -- a name of its own is found faster, and this runs for every task
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local head = call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now), 'WITHSCORES', 'LIMIT', 0, ARGV[1])
local by_queue, jobs, moved, foreign = {}, {}, {}, {}
local deleted = 0
for i = 1, #head, 2 do
  local id = head[i]
  local job = call('HMGET', ARGV[2] .. id, 'origin', 'created_at', 'attempt', 'status')
  if job[2] and not job[3] then
    foreign[#foreign + 1] = id
  else
    moved[#moved + 1] = id
    jobs[#moved] = {job[1], head[i + 1], not job[3], job[4]}
  end
end
if #moved > 0 then
  -- First of all what frees memory: a script that has begun to write is not stopped when Redis has no more of it.
  call('ZREM', KEYS[1], unpack(moved))
end
for i, id in ipairs(moved) do
  local origin, due, is_first, status = unpack(jobs[i])
  if origin and not is_first and (status == 'queued' or status == 'started') then
    call('SREM', KEYS[3], id) -- a retry of a stock worker, which RQ's own tools have put into the queue already
  elseif origin then
    local key = ARGV[2] .. id
    if is_first then
      call('HSET', key, 'status', 'queued', 'due', due)
    else
      call('HSET', key, 'status', 'queued') -- due stays that of the first delivery
    end
    if status == 'failed' then
      call('ZREM', ARGV[4] .. origin, id) -- a stock worker counts it there until it is tried again
      call('SREM', KEYS[3], id)
      clear_error(key)
    end
    local queue = ARGV[3] .. origin
    by_queue[queue] = by_queue[queue] or {}
    table.insert(by_queue[queue], id)
  else
    deleted = deleted + 1 -- by another program, while it waited
  end
end
if deleted > 0 then
  call('HINCRBY', KEYS[4], 'deleted:', deleted)
end
for queue, queued in pairs(by_queue) do
  call('SADD', KEYS[2], queue)
  call('RPUSH', queue, unpack(queued))
end
local wait = ''
local next = call('ZRANGE', KEYS[1], #foreign, #foreign, 'WITHSCORES')
if next[2] then
  wait = string.format('%.6f', math.max(0, next[2] - now))
end
return {#moved, wait, unpack(foreign)}
