-- For other scripts: whether another program put a job into Redis, so that QTask never accepted it. RQ writes created_at
-- into every job that it saves, also into tasks (a stock worker, `rq requeue`); but a task that RQ has saved was released
-- or claimed before, which leaves due or attempt. A foreign job that QTask delivered has both; settle.lua marks it by the
-- field foreign, since the worker can tell by its data.
local function is_foreign(key)
  local created_at, attempt, due, foreign = unpack(redis.call('HMGET', key, 'created_at', 'attempt', 'due', 'foreign'))
  return foreign or (created_at and not (attempt or due))
end

