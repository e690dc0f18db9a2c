-- Forget jobs that ended before the retention.
-- ARGV: 2 retention ms
-- Returns the number of jobs forgotten, 100 at most
local now = now_ms()
local jobs = redis.call('ZRANGEBYSCORE', P .. 'done', '-inf', now - tonumber(ARGV[2]), 'LIMIT', 0, 100)
for _, job in ipairs(jobs) do
  for index = 0, tonumber(redis.call('HGET', job_key(job), 'items')) - 1 do
    redis.call('DEL', item_key(job .. ':' .. index))
  end
  redis.call('DEL', job_key(job))
  redis.call('ZREM', P .. 'jobs', job)
  redis.call('ZREM', P .. 'done', job)
  redis.call('ZREM', P .. 'outbox', job)
end
return #jobs
