-- For other scripts, whose head asks for it: whether a job was put into Redis by another program, so that QTask never
-- accepted it. RQ writes created_at into every job that it saves, also into tasks (a stock worker, `rq requeue`); a task
-- that RQ has saved has been released or claimed before, which leaves due or attempt. A foreign job that QTask
-- delivered bears both; settle.lua marks it by the field foreign, since the worker can tell by its data.
local function is_foreign(key)
  local job = redis.call('HMGET', key, 'foreign', 'created_at', 'attempt', 'due')
  return job[1] or (job[2] and not (job[3] or job[4]))
end

