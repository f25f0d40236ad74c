-- Says that a worker is alive, to QTask's schedulers and to RQ's tools.
--
-- KEYS (HeartbeatKeys in workers.py)
--   WORKERS    sorted set: token by last heartbeat
--   RQ_WORKER  RQ's hash of the worker
-- ARGV (HeartbeatArguments)
--   TOKEN        of the worker
--   TTL_SECONDS  for which RQ's hash lives on without another heartbeat
-- then field, value, … of RQ's hash
--
-- Returns the time of Redis in Unix seconds.
local time = redis.call('TIME')
local now = string.format('%.6f', time[1] + time[2] / 1000000)
-- First of all what takes no memory: a script that has begun to write is not stopped when Redis has no more of it,
-- and a worker must not count as dead for that.
redis.call('ZREM', WORKERS, TOKEN)
redis.call('ZADD', WORKERS, now, TOKEN)
redis.call('HSET', RQ_WORKER, unpack(ARGV, FIRST))
redis.call('EXPIRE', RQ_WORKER, TTL_SECONDS)
return now
