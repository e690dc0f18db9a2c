-- Return the newest jobs that match, among the jobs that one step looks at.
--
-- Arguments:
--   before        only jobs with a lower accept order; absent for the newest
--   after         only jobs with a higher accept order; absent for all
--   limit         jobs returned at most
--   scan          jobs looked at at most; Redis serves no other client during the step
--   state, model, tenant  absent if every job matches
--   with_images   true for jobs with a finished image
--   since_ms, until_ms  only jobs that were accepted from the first to, not including, the second; absent without a bound
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

-- Jobs are in the order of their times, except for those that were accepted after Redis' clock went back, by an hour at
-- most.
local CLOCK_SLACK_MS = 3600000

local function accepted_ms(key)
  return (args.since_ms or args.until_ms) and tonumber(redis.call('HGET', key, 'accepted_ms'))
end

local function is_in_time(ms)
  return not ms or ms >= (args.since_ms or 0) and ms < (args.until_ms or math.huge)
end

local function has_images(key)
  return not args.with_images or tonumber(redis.call('HGET', key, 'succeeded') or 0) > 0
end

local jobs = {}
for position = 1, #page, 2 do
  local id, order = page[position], page[position + 1]
  local key = job_key(id)
  local ms = accepted_ms(key)
  if ms and args.since_ms and ms < args.since_ms - CLOCK_SLACK_MS then return {false, jobs} end
  if from_index and redis.call('EXISTS', key) == 0 then
    -- A process of an earlier version forgot the job, and does not know this index.
    redis.call('ZREM', index, id)
  elseif matches(key, 'tenant', not from_index and args.tenant) and matches(key, 'state', args.state)
    and matches(key, 'model', args.model) and is_in_time(ms) and has_images(key) then
    local job = {id, order, fields(key, 'state', 'model', 'items', 'queued', 'running', 'succeeded', 'failed',
      'canceled', 'accepted_ms', 'started_ms', 'finished_ms')}
    -- The index may name a job without a record.
    if job[3] then jobs[#jobs + 1] = job end
    if #jobs == args.limit then return {order, jobs} end
  end
end
-- A step that got fewer jobs than it asked for has reached the end.
return {#page == 2 * args.scan and page[#page], jobs}
