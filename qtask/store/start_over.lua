-- For other scripts, which also need newest_lines.lua. A job that has the field exc_info is dead or was dead. If the
-- field is empty, there is no error but a history; so a claim does not have to look for the history of every job.

-- Removes the error, and returns whether the task has a history.
local function clear_error(key)
  if redis.call('HEXISTS', key, 'history') == 1 then
    redis.call('HSET', key, 'exc_info', '')
    return true
  end
  redis.call('HDEL', key, 'exc_info')
  return false
end

-- Gives a dead task all its attempts again, and moves its outcomes to its history. Returns whether it now has a
-- history.
local function start_over(key, limit)
  local outcomes, history = unpack(redis.call('HMGET', key, 'outcomes', 'history'))
  redis.call('HDEL', key, 'attempt', 'outcomes')
  if outcomes and outcomes ~= '' then
    redis.call('HSET', key, 'history', newest_lines((history or '') .. '\n' .. outcomes, limit))
  end
  return clear_error(key)
end

