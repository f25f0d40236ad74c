-- For other scripts, whose head asks for it: removes the jobs of some ids, with the results that a stock worker left.
local function unlink_jobs(ids, job_prefix, results_prefix)
  local gone = {}
  for _, id in ipairs(ids) do
    gone[#gone + 1] = job_prefix .. id
    gone[#gone + 1] = results_prefix .. id
  end
  redis.call('UNLINK', unpack(gone))
end

