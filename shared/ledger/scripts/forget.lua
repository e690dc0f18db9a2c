-- Forget jobs that ended longer ago than the retention, and that nobody waits for any more.
--
-- Arguments: retention_ms
-- Keys: done, job, item, specs, results, result_parts, jobs, tenant_jobs, sweep, sweeps, tenant_sweeps, outbox
-- Returns the number of jobs forgotten
local now = now_ms()

-- Jobs examined in one step, and items after which it ends; Redis serves no other client during it.
local JOBS_AT_ONCE, ITEMS_AT_ONCE = 100, 5000
-- A job whose webhook is late is examined again after this time.
local LATE_MS = 60000

-- Return the time at which the last job of a sweep ended; nil while one has not.
local function sweep_ended_ms(sweep)
  local known, ids = fields(sweep_key(sweep), 'ended_ms', 'jobs')
  if known then return tonumber(known) end
  local jobs, ended_ms = cjson.decode(ids), 0
  -- From the last one, which is likely to end last.
  for position = #jobs, 1, -1 do
    local state, finished_ms = fields(job_key(jobs[position]), 'state', 'finished_ms')
    if state and not finished_ms then return nil end
    ended_ms = math.max(ended_ms, tonumber(finished_ms or 0))
  end
  redis.call('HSET', sweep_key(sweep), 'ended_ms', string.format('%.0f', ended_ms))
  return ended_ms
end

-- Sweeps that this step looked at, with the time until which each must stay. A step may look at 100 jobs of one.
local sweeps = {}

-- Return the time until which a sweep must stay, with all of its jobs, or nil.
local function sweep_needed_until(sweep)
  if not sweeps[sweep] then
    local tenant, key_until_ms = fields(sweep_key(sweep), 'tenant', 'key_until_ms')
    -- Without a record, it went with another of its jobs.
    local ended_ms = tenant and sweep_ended_ms(sweep) or not tenant and 0
    -- One that has not ended stays for the retention from now on, at least: its jobs are not examined again and again.
    sweeps[sweep] = math.max((ended_ms or now) + args.retention_ms, tonumber(key_until_ms or 0))
  end
  if sweeps[sweep] > now then return sweeps[sweep] end
end

-- Return the time until which a job must stay, or nil. A webhook that is still being sent needs the job's record, and an
-- Idempotency-Key stands for a new job if its own has gone.
local function needed_until(job)
  local due_ms = redis.call('ZSCORE', OUTBOX, job)
  if due_ms then return math.max(tonumber(due_ms), now + LATE_MS) end
  local key_until_ms, item_messages, sweep = fields(job_key(job), 'key_until_ms', 'item_messages', 'sweep')
  if tonumber(item_messages or 0) > 0 then return now + LATE_MS end
  key_until_ms = tonumber(key_until_ms or 0)
  if key_until_ms > now then return key_until_ms end
  if sweep then return sweep_needed_until(sweep) end
end

local function forget_sweep(sweep, tenant)
  redis.call('DEL', sweep_key(sweep))
  redis.call('ZREM', SWEEPS, sweep)
  redis.call('ZREM', tenant_sweeps_key(tenant), sweep)
end

-- Forget a job and return the number of its items.
local function forget(job)
  local items, tenant, sweep = fields(job_key(job), 'items', 'tenant', 'sweep')
  items = tonumber(items)
  for index = 0, items - 1 do redis.call('DEL', item_key(job .. ':' .. index)) end
  redis.call('DEL', job_key(job), specs_key(job), results_key(job), result_parts_key(job))
  redis.call('ZREM', JOBS, job)
  redis.call('ZREM', tenant_jobs_key(tenant), job)
  redis.call('ZREM', DONE, job)
  -- With the first of its jobs: a sweep is shown as a whole.
  if sweep then forget_sweep(sweep, tenant) end
  return items
end

local forgotten, items = 0, 0
for _, job in ipairs(redis.call('ZRANGEBYSCORE', DONE, '-inf', now - args.retention_ms, 'LIMIT', 0, JOBS_AT_ONCE)) do
  local needed_until_ms = needed_until(job)
  if needed_until_ms then
    -- Moved back, so that jobs that must stay do not fill every step.
    redis.call('ZADD', DONE, needed_until_ms - args.retention_ms, job)
  else
    items = items + forget(job)
    forgotten = forgotten + 1
    if items >= ITEMS_AT_ONCE then break end
  end
end
-- A process of an earlier version forgets jobs without their sweep. One look at the oldest finds each of these in time.
local oldest = redis.call('ZRANGE', SWEEPS, 0, 0)[1]
if oldest then
  local jobs, tenant = fields(sweep_key(oldest), 'jobs', 'tenant')
  if redis.call('EXISTS', job_key(cjson.decode(jobs)[1])) == 0 then forget_sweep(oldest, tenant) end
end
return forgotten
