-- For other scripts, whose head asks for it and for newest_lines.lua. A job that bears an error is dead, or was. An empty
-- error is no error: it says that the task has a history, so that a claim need not look for that in every job.

-- Takes the error away, and returns whether the task has a history.
local function clear_error(key)
  if redis.call('HEXISTS', key, 'history') == 1 then
    redis.call('HSET', key, 'exc_info', '')
    return true
  end
  redis.call('HDEL', key, 'exc_info')
  return false
end

-- A task that was dead gets all its attempts anew, and what became of the former ones goes into its history. Returns
-- whether it has a history now.
local function start_over(key, most)
  local job = redis.call('HMGET', key, 'outcomes', 'history')
  redis.call('HDEL', key, 'attempt', 'outcomes')
  if job[1] and job[1] ~= '' then
    redis.call('HSET', key, 'history', newest_lines((job[2] or '') .. '\n' .. job[1], most))
  end
  return clear_error(key)
end

