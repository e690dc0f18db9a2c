-- Take expired leases back. A new Redis run id means that Redis was away: its workers could not renew, so every
-- lease first gets a full ttl of grace.
-- ARGV: 2 ttl ms, 3 max attempts, 4 error JSON of a lost worker
-- Returns JSON {requeued: {pool: count}, ended: [item ids], grace: bool}
local now = now_ms()
local leases = P .. 'leases'
local out = {requeued = {}, ended = {}, grace = false}

local run_id = redis.call('INFO', 'server'):match('run_id:(%w+)')
local known = redis.call('GET', P .. 'run_id')
if known ~= run_id then
  redis.call('SET', P .. 'run_id', run_id)
  if known then
    out.grace = true
    for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
      redis.call('ZADD', leases, now + tonumber(ARGV[2]), id)
    end
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', '(' .. now, 'LIMIT', 0, 200)) do
  local state, pool = give_back(id, now, tonumber(ARGV[3]), ARGV[4])
  if state == 'queued' then
    out.requeued[pool] = (out.requeued[pool] or 0) + 1
  else
    out.ended[#out.ended + 1] = id
  end
end
return cjson.encode(out)
