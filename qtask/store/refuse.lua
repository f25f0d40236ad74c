-- Takes a refused dict out of the inbox and keeps it, with the reason, in a bounded stream.
--
-- KEYS[1]  inbox (stream)
-- KEYS[2]  refused (stream)
-- ARGV[1]  consumer group of the inbox
-- ARGV[2]  entry id in the inbox
-- ARGV[3]  the beginning of the dict as it came
-- ARGV[4]  the reason (JSON)
-- ARGV[5]  how many refused dicts to keep
-- ARGV[6]  key that the reason is pushed to, '' for none
-- ARGV[7]  seconds after which that key expires
--
-- Returns 1, or 0 when another gateway had already taken the entry.
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 0
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'task', ARGV[3], 'error', ARGV[4])
if ARGV[6] ~= '' and type(redis.pcall('RPUSH', ARGV[6], ARGV[4])) == 'number' then -- a key of another type gets none
  redis.call('EXPIRE', ARGV[6], ARGV[7])
end
return 1
