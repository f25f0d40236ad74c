-- For other scripts: the timeout of tasks of a flow whose timeout adapts, in seconds; '' if none is known. See
-- adapt_timeout.lua.
local known_timeouts = {}

local function timeout_of(name)
  if not known_timeouts[name] then
    local text = redis.call('GET', TIMEOUT_PREFIX .. name)
    known_timeouts[name] = text and string.format('%.6f', cjson.decode(text).seconds) or ''
  end
  return known_timeouts[name]
end
