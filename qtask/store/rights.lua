-- Checks whether the user who runs it may run some commands. Redis 7 and Valkey have a function for that. On an older
-- Redis it runs each command on a key that does not exist, with arguments that change nothing, and leaves nothing
-- behind.
--
-- ARGV (RightsArguments in rights.py)
--   TRIES  the commands, each a list of its words (JSON); a key begins with a zero byte
--
-- Returns (RightsReply)
--   MODE     mode of Redis (`standalone`, `cluster`, …), '' if the user may not run INFO
--   ANSWERS  for each command 1 if it may be run, 0 if not, and 2 if that is not known: an older Redis cannot try
--            commands that no script may run
local about = redis.pcall('INFO', 'server')
local mode = type(about) == 'string' and (string.match(about, 'redis_mode:(%a+)') or string.match(about, 'server_mode:(%a+)'))
local answers = {}
local DENIED = {"can't run this command", "can't access at least one", "can't publish to the channel"}
local CREATES = {LPUSH = true, RPUSH = true, SADD = true}

local function try(words)
  local reply = redis.pcall(unpack(words))
  local text = type(reply) == 'table' and reply.err or ''
  for _, part in ipairs(DENIED) do
    if string.find(text, part, 1, true) then
      return 0
    end
  end
  return string.find(text, 'not allowed from script', 1, true) and 2 or 1
end

local function look(words, key)
  if redis.acl_check_cmd then
    local known, may = pcall(redis.acl_check_cmd, unpack(words))
    return not known and 2 or may and 1 or 0
  end
  if not CREATES[words[1]] then
    return try(words)
  end
  if try({'UNLINK', key}) ~= 1 then
    return 2
  end
  local may = try(words)
  redis.pcall('UNLINK', key)
  return may
end

for _, words in ipairs(cjson.decode(TRIES)) do
  local key = ''
  for i, word in ipairs(words) do
    if string.byte(word) == 0 then
      key = string.sub(word, 2) .. (redis.acl_check_cmd and '' or ':qtask-probe')
      words[i] = key
    end
  end
  answers[#answers + 1] = look(words, key)
end
return {[MODE] = mode or '', [ANSWERS] = answers}
