-- For other scripts, whose head asks for it and for newest_lines.lua: a task that was dead gets all its attempts anew,
-- and what became of the former ones goes into its history.
local function start_over(key, most)
  local job = redis.call('HMGET', key, 'outcomes', 'history')
  redis.call('HDEL', key, 'attempt', 'exc_info', 'outcomes')
  if job[1] then
    redis.call('HSET', key, 'history', newest_lines((job[2] or '') .. '\n' .. job[1], most))
  end
end

