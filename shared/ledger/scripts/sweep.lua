-- Forget jobs that ended longer ago than the retention, and that nobody waits for any more.
--
-- Arguments: retention_ms
-- Keys: done, job, item, specs, results, result_parts, jobs, tenant_jobs, outbox
-- Returns the number of jobs forgotten
local now = now_ms()

-- Jobs examined in one step, and items after which it ends; Redis serves no other client during it.
local JOBS_AT_ONCE, ITEMS_AT_ONCE = 100, 5000
-- A job whose webhook is late is examined again after this time.
local LATE_WEBHOOK_MS = 60000

-- Return the time until which a job must stay, or nil. A webhook that is still being sent needs the job's record, and an
-- Idempotency-Key stands for a new job if its own has gone.
local function needed_until(job)
  local due_ms = redis.call('ZSCORE', OUTBOX, job)
  if due_ms then return math.max(tonumber(due_ms), now + LATE_WEBHOOK_MS) end
  local key_until_ms, item_messages = fields(job_key(job), 'key_until_ms', 'item_messages')
  if tonumber(item_messages or 0) > 0 then return now + LATE_WEBHOOK_MS end
  key_until_ms = tonumber(key_until_ms or 0)
  if key_until_ms > now then return key_until_ms end
end

-- Forget a job and return the number of its items.
local function forget(job)
  local items, tenant = fields(job_key(job), 'items', 'tenant')
  items = tonumber(items)
  for index = 0, items - 1 do redis.call('DEL', item_key(job .. ':' .. index)) end
  redis.call('DEL', job_key(job), specs_key(job), results_key(job), result_parts_key(job))
  redis.call('ZREM', JOBS, job)
  redis.call('ZREM', tenant_jobs_key(tenant), job)
  redis.call('ZREM', DONE, job)
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
return forgotten
