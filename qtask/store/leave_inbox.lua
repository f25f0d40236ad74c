-- Removes a consumer from the inbox's group, unless it has entries that it did not finish: another gateway takes these
-- over.
--
-- KEYS (LeaveKeys in inbox.py)
--   INBOX  stream
-- ARGV (LeaveArguments)
--   CONSUMER  its name
--
-- Returns 1 when it was removed, else 0.
if #redis.call('XPENDING', INBOX, INBOX_GROUP, '-', '+', 1, CONSUMER) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', INBOX, INBOX_GROUP, CONSUMER)
return 1
