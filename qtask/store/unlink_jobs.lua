-- For other scripts: removes the jobs with these ids, and the results that a stock worker left.
local function unlink_jobs(ids)
  local gone = {}
  for _, id in ipairs(ids) do
    gone[#gone + 1] = JOB_PREFIX .. id
    gone[#gone + 1] = RESULTS_PREFIX .. id
  end
  redis.call('UNLINK', unpack(gone))
end
