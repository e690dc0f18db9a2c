-- Send the webhook of an ended job again: it is due now, with all its attempts.
--
-- Arguments:
--   job_id
--   tenant  a job of another tenant does not exist for the caller; absent for one that may see every job
-- Keys: job, outbox, outbox:clock
-- Returns 'queued' | 'unknown' (no such job) | 'none' (no message is sent about the job's end) | 'waiting' (it has not ended, or its message
--   has been neither delivered nor given up)
local job = args.job_id
local items, tenant, url, states, finished_ms, state =
  fields(job_key(job), 'items', 'tenant', 'webhook', 'webhook_states', 'finished_ms', 'state')
if not items or (args.tenant and tenant ~= args.tenant) then return 'unknown' end
if not url or (finished_ms and not names_state(states, state)) then return 'none' end
if not finished_ms or redis.call('ZSCORE', OUTBOX, job) then return 'waiting' end
local now, _, clock = outbox_now()
redis.call('HSET', job_key(job), 'webhook_state', 'waiting', 'webhook_attempts', 0, 'webhook_error', '',
  'webhook_resent_ms', clock)
redis.call('ZADD', OUTBOX, now, job)
return 'queued'
