-- Finds a page of a sorted set after a given position in its order (by score, and by member if scores are equal).
-- Members may come and go between two pages without an effect on the others, because the position is not a rank.
--
-- KEYS (PageKeys in pages.py)
--   PLACE  sorted set
-- ARGV (PageArguments)
--   REVERSE     '1' for the highest score first, else ''
--   SCORE       last score of the page before, '' for the first page
--   MEMBER      last member of the page before, '' for the first page
--   UNTIL       the highest score to be found, '' for no bound
--   QUEUE_NAME  finds only the jobs of this queue, '' for all members. The id of a job is what follows the last colon of a
--               member
--   LOOK        most members to check
--   LIMIT       most members to find
--
-- Returns (PageReply)
--   FOUND        the members
--   LAST_SCORE   score of the last member that was checked; '' for none
--   LAST_MEMBER  that member; '' for none
--   MORE         1 if more members follow, else 0
--   HIGHEST      highest score in the set, '' if it is empty
local call = redis.call

-- Whether a member comes before another one with the same score. Redis compares bytes; Lua's own comparison depends on
-- the locale of the host.
local function comes_before(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then
      return a < b
    end
  end
  return #one < #other
end

-- How many members come before SCORE and MEMBER, and how many do not come after it.
local function ranks()
  if call('ZSCORE', PLACE, MEMBER) == SCORE then
    local rank = call('ZRANK', PLACE, MEMBER)
    return rank, rank + 1
  end
  local low = call('ZCOUNT', PLACE, '-inf', '(' .. SCORE)
  local high = low + call('ZCOUNT', PLACE, SCORE, SCORE)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if comes_before(call('ZRANGE', PLACE, middle, middle)[1], MEMBER) then
      low = middle + 1
    else
      high = middle
    end
  end
  return low, low
end

local size = call('ZCARD', PLACE)
local before, until_here = 0, size
if SCORE ~= '' then
  before, until_here = ranks()
  if REVERSE ~= '1' then
    before, until_here = until_here, size
  else
    before, until_here = 0, before
  end
end
-- The ranks from `before` to `until_here` (excluded) remain; a page begins at one of their ends.
local first, last = before, math.min(until_here, before + LOOK) - 1
if REVERSE == '1' then
  first, last = math.max(before, until_here - LOOK), until_here - 1
end
local members = last < first and {} or call('ZRANGE', PLACE, first, last, 'WITHSCORES')

local found, looked_at = {}, 0
local last_score, last_member, bounded = '', '', false
for i = 1, #members / 2 do
  local position = REVERSE == '1' and #members / 2 + 1 - i or i
  local member, score = members[2 * position - 1], members[2 * position]
  if UNTIL ~= '' and tonumber(score) > tonumber(UNTIL) then
    bounded = true
    break
  end
  if #found == tonumber(LIMIT) then
    break
  end
  looked_at = i
  last_score, last_member = score, member
  if QUEUE_NAME == '' or call('HGET', JOB_PREFIX .. string.match(member, '[^:]*$'), 'origin') == QUEUE_NAME then
    found[#found + 1] = member
  end
end
return {
  [FOUND] = found,
  [LAST_SCORE] = last_score,
  [LAST_MEMBER] = last_member,
  [MORE] = (not bounded and looked_at < until_here - before) and 1 or 0,
  [HIGHEST] = size > 0 and call('ZRANGE', PLACE, -1, -1, 'WITHSCORES')[2] or '',
}
