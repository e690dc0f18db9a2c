-- Extend a lease and store progress; the answer carries the caller's cancel.
--
-- Arguments:
--   item_id, fence
--   lease_ttl_ms
--   progress_json
--   gpu_ms         ms for which the attempt has occupied its device so far
-- Keys: item, job, leases
-- Returns 'ok' | 'cancel' | 'lost' (another claim owns the item)
local now = now_ms()
local id = args.item_id
if not is_owned(id, args.fence) then return 'lost' end
redis.call('ZADD', LEASES, 'XX', now + args.lease_ttl_ms, id)
-- The term is stored with the lease: the process that reaps may have another setting.
redis.call('HSET', item_key(id), 'progress', args.progress_json, 'lease_ttl_ms', args.lease_ttl_ms,
  'gpu_ms', args.gpu_ms)
local job = redis.call('HGET', item_key(id), 'job')
if redis.call('HGET', job_key(job), 'cancel') == '1' then return 'cancel' end
return 'ok'
