-- Record the outcome of an attempt to deliver a webhook message.
--
-- Arguments:
--   job_id
--   state    'delivered' | 'waiting' | 'failed'
--   wait_ms  time until a waiting message is due again
--   error    why it was not delivered; empty for a delivered one
-- Keys: outbox, job
-- Returns 1, or 0 if the job is not in the outbox: it was forgotten, or another sender was first
local now = now_ms()
local job = args.job_id
if not redis.call('ZSCORE', OUTBOX, job) then return 0 end
if args.state == 'waiting' then
  redis.call('ZADD', OUTBOX, now + args.wait_ms, job)
else
  redis.call('ZREM', OUTBOX, job)
end
redis.call('HSET', job_key(job), 'webhook_state', args.state, 'webhook_error', args.error)
return 1
