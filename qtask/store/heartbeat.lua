-- Says that a worker is alive, to QTask's schedulers and to RQ's tools.
--
-- KEYS[1]  workers (sorted set: token by last heartbeat)
-- KEYS[2]  RQ's hash of the worker
-- ARGV[1]  token of the worker
-- ARGV[2]  seconds for which RQ's hash lives on without another heartbeat
-- then field, value, … of RQ's hash
--
-- Returns the time of Redis in Unix seconds.
local time = redis.call('TIME')
local now = string.format('%.6f', time[1] + time[2] / 1000000)
-- First of all what takes no memory: a script that has begun to write is not stopped when Redis has no more of it,
-- and a worker must not count as dead for that.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[2], ARGV[2])
return now
