-- Requeue or end the items whose lease expired.
--
-- Arguments:
--   lease_ttl_ms
--   max_attempts  claims after which an item fails
--   error_json    the error of an item that fails: its workers were lost
-- Keys: run_id, leases, and those of requeue_or_end
-- Returns JSON {requeued: {pool: count}, ended: [item ids], grace: bool}; cjson writes an empty list as {}
local now = now_ms()
local reply = {requeued = {}, ended = {}, grace = false}

-- Items handled in one step; Redis serves no other client during it.
local EXPIRED_AT_ONCE = 200

-- Another run id means that Redis was away, when no worker could renew: every lease gets a full term of grace. On the
-- first start there is no earlier run id, and nothing to grant.
local run_id = redis.call('INFO', 'server'):match('run_id:(%w+)')
local known_run_id = redis.call('GET', RUN_ID)
if known_run_id ~= run_id then
  redis.call('SET', RUN_ID, run_id)
  if known_run_id then
    reply.grace = true
    for _, id in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
      redis.call('ZADD', LEASES, now + args.lease_ttl_ms, id)
    end
  end
end

local expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', string.format('(%.0f', now), 'LIMIT', 0, EXPIRED_AT_ONCE)
for _, id in ipairs(expired) do
  local state, pool = requeue_or_end(id, now, args.max_attempts, args.error_json)
  if state == 'queued' then
    reply.requeued[pool] = (reply.requeued[pool] or 0) + 1
  else
    reply.ended[#reply.ended + 1] = id
  end
end
return cjson.encode(reply)
