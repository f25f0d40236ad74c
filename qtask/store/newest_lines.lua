-- For other scripts: the last lines of a text.
local function newest_lines(text, limit)
  local lines = {}
  for line in string.gmatch(text, '[^\n]+') do
    lines[#lines + 1] = line
  end
  return table.concat(lines, '\n', math.max(1, #lines - limit + 1))
end

