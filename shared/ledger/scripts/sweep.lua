-- Forget jobs that ended longer ago than the retention.
--
-- Arguments: retention_ms
-- Keys: done, job, item, jobs, outbox
-- Returns the number of jobs forgotten
local now = now_ms()

-- Jobs forgotten in one step; Redis serves no other client during it.
local JOBS_AT_ONCE = 100

local jobs = redis.call('ZRANGEBYSCORE', DONE, '-inf', now - args.retention_ms, 'LIMIT', 0, JOBS_AT_ONCE)
for _, job in ipairs(jobs) do
  for index = 0, tonumber(redis.call('HGET', job_key(job), 'items')) - 1 do
    redis.call('DEL', item_key(job .. ':' .. index))
  end
  redis.call('DEL', job_key(job))
  redis.call('ZREM', JOBS, job)
  redis.call('ZREM', DONE, job)
  redis.call('ZREM', OUTBOX, job)
end
return #jobs
