-- For other scripts, which also need newest_lines.lua. A job that has the field exc_info is dead, or was. An empty one is
-- no error: it says that the task has a history, so that a claim need not look for that in every job.

-- Removes the error, and returns whether the task has a history.
local function clear_error(key)
  if redis.call('HEXISTS', key, 'history') == 1 then
    redis.call('HSET', key, 'exc_info', '')
    return true
  end
  redis.call('HDEL', key, 'exc_info')
  return false
end

-- Gives a task that was dead all its attempts again, and moves its outcomes into its history. Returns whether it has a
-- history now.
local function start_over(key, limit)
  local outcomes, history = unpack(redis.call('HMGET', key, 'outcomes', 'history'))
  redis.call('HDEL', key, 'attempt', 'outcomes')
  if outcomes and outcomes ~= '' then
    redis.call('HSET', key, 'history', newest_lines((history or '') .. '\n' .. outcomes, limit))
  end
  return clear_error(key)
end

