-- Moves a refused dict from the inbox to a bounded stream, together with the reason.
--
-- KEYS (RefuseKeys in inbox.py)
--   INBOX    stream
--   REFUSED  stream
-- ARGV (RefuseArguments)
--   ENTRY      its id in the inbox
--   DICT       the beginning of the dict as it came
--   REASON     JSON
--   REPLY_KEY  key that the reason is pushed to, '' for none
--
-- Returns 1, or 0 if another gateway had already taken the entry.
if redis.call('XACK', INBOX, INBOX_GROUP, ENTRY) == 0 then
  return 0
end
redis.call('XDEL', INBOX, ENTRY)
redis.call('XADD', REFUSED, 'MAXLEN', '~', REFUSED_KEEP, '*', 'task', DICT, 'error', REASON)
if REPLY_KEY ~= '' and type(redis.pcall('RPUSH', REPLY_KEY, REASON)) == 'number' then -- a key of another type gets none
  redis.call('EXPIRE', REPLY_KEY, INBOX_REPLY_SECONDS)
end
return 1
