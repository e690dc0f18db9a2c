-- Pick the best queued item for one slot, raise its fence and start its lease.
--
-- Arguments: those of choose.lua, and
--   boot          identity of the slot's process
--   lease_ttl_ms  length of the lease
--   nonce         identity of this call, so that repeating it after a lost reply gives the same item
-- Keys: those of choose.lua, and leases, job
-- Returns {item id, fence, attempt, spec JSON, queued since ms, now ms} or nil
local now = now_ms()

local function claim_of(id)
  local fence, attempt, spec, queued_ms = fields(item_key(id), 'fence', 'attempt', 'spec', 'queued_ms')
  return {id, fence, attempt, spec, queued_ms, now}
end

-- Forget tenants that were last served before the wait bound: they are next with or without their entry.
-- Four random entries for each claim keep the hash small, because a claim adds one entry at most.
local function forget_served(pool)
  local served = served_key(pool)
  local sample = redis.call('HRANDFIELD', served, 4, 'WITHVALUES')
  for position = 1, #sample, 2 do
    local tenant, served_ms = sample[position], tonumber(sample[position + 1])
    if now - served_ms > args.wait_bound_ms then redis.call('HDEL', served, tenant) end
  end
end

for _, id in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
  if redis.call('HGET', item_key(id), 'nonce') == args.nonce then return claim_of(id) end
end

local id, pool = choose(now)
if not id then return nil end
local key = item_key(id)
local job, tenant, lane = fields(key, 'job', 'tenant', 'lane')
dequeue(id, pool, lane)
redis.call('HINCRBY', key, 'fence', 1)
redis.call('HINCRBY', key, 'attempt', 1)
redis.call('HSET', key, 'slot', args.slot, 'boot', args.boot, 'nonce', args.nonce, 'started_ms', now,
  'lease_ttl_ms', args.lease_ttl_ms)
redis.call('ZADD', LEASES, now + args.lease_ttl_ms, id)
redis.call('HINCRBY', busy_key(pool), tenant, 1)
redis.call('HSET', served_key(pool), tenant, now)
forget_served(pool)
move(id, job, 'queued', 'running', now)
return claim_of(id)
