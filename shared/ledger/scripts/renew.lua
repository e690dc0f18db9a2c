-- Extend a lease, store progress, and hand the cancel flag to the worker.
-- ARGV: 2 item id, 3 fence, 4 ttl ms, 5 progress JSON
-- Returns 'lost' | 'ok' | 'cancel'
local now = now_ms()
local id = ARGV[2]
if not owned(id, ARGV[3]) then return 'lost' end
redis.call('ZADD', P .. 'leases', 'XX', now + tonumber(ARGV[4]), id)
redis.call('HSET', item_key(id), 'progress', ARGV[5])
if redis.call('HGET', job_key(redis.call('HGET', item_key(id), 'job')), 'cancel') == '1' then return 'cancel' end
return 'ok'
