-- Removes a consumer from the inbox's group, unless it has unfinished entries, which another gateway will take over.
--
-- KEYS (LeaveKeys in inbox.py)
--   INBOX  stream
-- ARGV (LeaveArguments)
--   CONSUMER  its name
--
-- Returns 1 if it was removed, else 0.
if #redis.call('XPENDING', INBOX, INBOX_GROUP, '-', '+', 1, CONSUMER) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', INBOX, INBOX_GROUP, CONSUMER)
return 1
