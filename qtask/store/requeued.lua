-- For other scripts, which also need newest_lines.lua and start_over.lua: handles a job that is to be delivered and has
-- an error. Either RQ's own tools have put a dead task back into its queue; then its attempts start over. Or RQ's own
-- tools (a stock rqscheduler, `rq requeue`) have released a retry of a stock worker; then it is removed from the other
-- places only now, and its attempts continue.
-- Returns whether it started over, and whether it has a history.
local function requeued(id, key, failed, stock_retries, schedule, limit)
  if redis.call('SREM', stock_retries, id) == 1 then
    redis.call('ZREM', schedule, id) -- if RQ's own tools have put the retry into the queue before it was due
    redis.call('ZREM', failed, id)
    return false, clear_error(key)
  end
  return true, start_over(key, limit)
end

