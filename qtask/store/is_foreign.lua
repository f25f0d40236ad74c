-- For other scripts: whether another program put a job into Redis, so that QTask never accepted it. RQ writes
-- created_at into every job that it saves, including tasks (a stock worker, `rq requeue`). But a task that RQ has saved
-- was released or claimed before, so it has due or attempt. A foreign job that QTask delivered has them as well;
-- settle.lua gives it the field foreign, because the worker recognises it by its data.
local function is_foreign(key)
  local created_at, attempt, due, foreign = unpack(redis.call('HMGET', key, 'created_at', 'attempt', 'due', 'foreign'))
  return foreign or (created_at and not (attempt or due))
end

