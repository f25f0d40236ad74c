-- Records that a worker is alive, for QTask's schedulers and for RQ's tools.
--
-- KEYS (HeartbeatKeys in workers.py)
--   WORKERS    sorted set: token by last heartbeat
--   RQ_WORKER  RQ's hash of the worker
-- ARGV (HeartbeatArguments)
--   TOKEN        token of the worker
--   TTL_SECONDS  seconds after which RQ's hash expires without another heartbeat
-- then field, value, … of RQ's hash
--
-- Returns the time of Redis in Unix seconds.
local time = redis.call('TIME')
local now = string.format('%.6f', time[1] + time[2] / 1000000)
-- The first write must be one that takes no memory: Redis does not stop a script that has begun to write when it runs
-- out of memory, and a worker must not count as dead because of that.
redis.call('ZREM', WORKERS, TOKEN)
redis.call('ZADD', WORKERS, now, TOKEN)
redis.call('HSET', RQ_WORKER, unpack(ARGV, FIRST))
redis.call('EXPIRE', RQ_WORKER, TTL_SECONDS)
return now
