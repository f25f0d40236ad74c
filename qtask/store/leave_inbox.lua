-- Removes a consumer from the inbox's group, unless it has entries that it did not finish: these go to others.
--
-- KEYS[1]  inbox (stream)
-- ARGV[1]  consumer group of the inbox
-- ARGV[2]  name of the consumer
--
-- Returns 1 when it was removed, else 0.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
