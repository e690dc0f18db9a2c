-- Say what became of a message.
-- ARGV: 2 job id, 3 'delivered'|'waiting'|'failed', 4 ms until the next attempt of a waiting one, 5 error or ''
-- Returns 1, or 0 where the job is not in the outbox: forgotten, or settled by another
local now = now_ms()
local job = ARGV[2]
if not redis.call('ZSCORE', P .. 'outbox', job) then return 0 end
if ARGV[3] == 'waiting' then
  redis.call('ZADD', P .. 'outbox', now + tonumber(ARGV[4]), job)
else
  redis.call('ZREM', P .. 'outbox', job)
end
redis.call('HSET', job_key(job), 'webhook_state', ARGV[3], 'webhook_error', ARGV[5])
return 1
