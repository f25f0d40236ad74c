-- For other scripts, which also need newest_lines.lua and start_over.lua: what to do with a job that is to be delivered
-- and has an error. Either RQ's own tools have put a dead task back into its queue; then it starts over. Or RQ's own tools
-- (a stock rqscheduler, `rq requeue`) have released a retry of a stock worker; then it leaves the other places only now,
-- and goes on with its attempts.
-- Returns whether it started over, and whether it has a history.
local function requeued(id, key, failed, stock_retries, schedule, limit)
  if redis.call('SREM', stock_retries, id) == 1 then
    redis.call('ZREM', schedule, id) -- where RQ's own tools have put the retry into the queue before it was due
    redis.call('ZREM', failed, id)
    return false, clear_error(key)
  end
  return true, start_over(key, limit)
end

