-- Return the newest jobs that match, among the jobs that one step looks at.
--
-- Arguments:
--   before        only jobs with a lower accept order; absent for the newest
--   after         only jobs with a higher accept order; absent for all
--   limit         jobs returned at most
--   scan          jobs looked at at most; Redis serves no other client during the step
--   state, model, tenant  absent if every job matches
-- Keys: jobs, tenant_jobs, tenants_until, job; changes only tenant_jobs
-- Returns {accept order of the last job looked at | nil at the end of the listing, jobs}; each job is {id, order, state,
--   model, items, counts of queued, running, succeeded, failed and canceled items, accepted, started and finished ms}
local top = args.before and '(' .. string.format('%.0f', args.before) or '+inf'
local bottom = args.after and '(' .. string.format('%.0f', args.after) or '-inf'
-- The tenant's own index, unless it may lack jobs.
local from_index = args.tenant and are_tenants_indexed()
local index = from_index and tenant_jobs_key(args.tenant) or JOBS
local page = redis.call('ZREVRANGEBYSCORE', index, top, bottom, 'WITHSCORES', 'LIMIT', 0, args.scan)

-- Reading one field takes 4 us a job, all of them 10.
local function matches(key, name, wanted)
  return not wanted or redis.call('HGET', key, name) == wanted
end

local jobs = {}
for position = 1, #page, 2 do
  local id, order = page[position], page[position + 1]
  local key = job_key(id)
  if from_index and redis.call('EXISTS', key) == 0 then
    -- A sweep of an earlier version forgot the job, and does not know this index.
    redis.call('ZREM', index, id)
  elseif matches(key, 'tenant', not from_index and args.tenant) and matches(key, 'state', args.state)
    and matches(key, 'model', args.model) then
    local job = {id, order, fields(key, 'state', 'model', 'items', 'queued', 'running', 'succeeded', 'failed',
      'canceled', 'accepted_ms', 'started_ms', 'finished_ms')}
    -- The index may name a job without a record.
    if job[3] then jobs[#jobs + 1] = job end
    if #jobs == args.limit then return {order, jobs} end
  end
end
-- A step that got fewer jobs than it asked for has reached the end.
return {#page == 2 * args.scan and page[#page], jobs}
