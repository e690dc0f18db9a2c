-- Pick the best queued item for one slot, raise its fence and start its lease.
-- ARGV: 2 JSON list of the pools this slot serves, 3 slot, 4 boot, 5 adapter key warm in this slot, 6 ttl ms,
--       7 wait bound ms, 8 slot ttl ms, 9 nonce of this call, so that repeating it after a lost reply gives the same item
-- Returns {item id, fence, attempt, spec JSON, queued ms, now} or nil
local now = now_ms()
local slot = ARGV[3]

local function claimed(id)
  local f = fields(item_key(id), 'fence', 'attempt', 'spec', 'queued_ms')
  return {id, f[1], f[2], f[3], f[4], tostring(now)}
end

-- Forget when tenants were served, once that is longer ago than the wait bound: their turn is next either way.
-- Four at random, since a claim adds one at most.
local function forget_served(pool)
  local served = P .. 'served:' .. pool
  local some = redis.call('HRANDFIELD', served, 4, 'WITHVALUES')
  for i = 1, #some, 2 do
    if now - tonumber(some[i + 1]) > tonumber(ARGV[7]) then redis.call('HDEL', served, some[i]) end
  end
end

for _, id in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
  if redis.call('HGET', item_key(id), 'nonce') == ARGV[9] then return claimed(id) end
end
local id, pool = choose(cjson.decode(ARGV[2]), slot, ARGV[5], tonumber(ARGV[7]), tonumber(ARGV[8]), now)
if not id then return nil end
local key = item_key(id)
local f = fields(key, 'job', 'tenant', 'lane')
dequeue(id, pool, f[3])
redis.call('HINCRBY', key, 'fence', 1)
redis.call('HINCRBY', key, 'attempt', 1)
redis.call('HSET', key, 'slot', slot, 'boot', ARGV[4], 'nonce', ARGV[9], 'started_ms', now)
redis.call('ZADD', P .. 'leases', now + tonumber(ARGV[6]), id)
redis.call('HINCRBY', P .. 'busy:' .. pool, f[2], 1)
redis.call('HSET', P .. 'served:' .. pool, f[2], now)
forget_served(pool)
move(id, f[1], 'queued', 'running', now)
return claimed(id)
