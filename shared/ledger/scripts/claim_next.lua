-- Pick the best queued item for one slot, raise its fence and start its lease.
-- Order: an item that waited past the bound; then priority; then, in its pool, the tenant with fewest running items,
-- longest unserved; then the adapter this slot has warm; then the oldest adapter that no other slot has warm; then the
-- oldest.
-- ARGV: 2 JSON list of the pools this slot serves, 3 slot, 4 boot, 5 adapter key warm in this slot, 6 ttl ms,
--       7 wait bound ms, 8 slot ttl ms, 9 nonce of this call, so that repeating it after a lost reply gives the same item
-- Returns {item id, fence, attempt, spec JSON, queued ms, now} or nil
local now = now_ms()
local slot, warm = ARGV[3], ARGV[5]

local function claimed(id)
  local f = fields(item_key(id), 'fence', 'attempt', 'spec', 'queued_ms')
  return {id, f[1], f[2], f[3], f[4], tostring(now)}
end

local function warm_elsewhere()
  local keys = {}
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', P .. 'slots', now - tonumber(ARGV[8]), '+inf')) do
    if other ~= slot then
      local adapter = redis.call('HGET', P .. 'slot:' .. other, 'warm')
      if adapter then keys[adapter] = true end
    end
  end
  return keys
end

-- Is the first list of numbers before the second?
local function before(one, other)
  for i = 1, #one do
    if one[i] ~= other[i] then return one[i] < other[i] end
  end
  return false
end

-- The share whose turn it is, by priority, running items and time since it was last served; and its priority.
local function next_share(pool)
  local best, best_share
  for _, share in ipairs(redis.call('HKEYS', P .. 'shares:' .. pool)) do
    local priority, tenant = share:match('^(%d+)|(.*)$')
    local rank = {
      tonumber(priority),
      tonumber(redis.call('HGET', P .. 'busy:' .. pool, tenant) or 0),
      tonumber(redis.call('HGET', P .. 'served:' .. pool, tenant) or 0),
    }
    if not best or before(rank, best) then best, best_share = rank, share end
  end
  return best_share, best[1]
end

local function next_lane(pool, share)
  local lanes = lanes_key(pool, share)
  local mine = share .. '|' .. warm
  if redis.call('ZSCORE', lanes, mine) then return mine end
  local elsewhere = warm_elsewhere()
  local oldest = redis.call('ZRANGE', lanes, 0, 63)
  for _, lane in ipairs(oldest) do
    if not elsewhere[lane:sub(#share + 2)] then return lane end
  end
  return oldest[1]
end

-- The best item of one pool, and its rank among those of other pools: overdue, priority, accept order.
local function candidate(pool)
  local head = redis.call('ZRANGE', P .. 'pending:' .. pool, 0, 0, 'WITHSCORES')
  if not head[1] then return nil end
  if now - tonumber(redis.call('HGET', item_key(head[1]), 'accepted_ms')) > tonumber(ARGV[7]) then
    return head[1], {0, 0, tonumber(head[2])}
  end
  local share, priority = next_share(pool)
  local item = redis.call('ZRANGE', lane_key(pool, next_lane(pool, share)), 0, 0, 'WITHSCORES')
  return item[1], {1, priority, tonumber(item[2])}
end

local function choose()
  local best, best_id, best_pool
  for _, pool in ipairs(cjson.decode(ARGV[2])) do
    local id, rank = candidate(pool)
    if id and (not best or before(rank, best)) then best, best_id, best_pool = rank, id, pool end
  end
  return best_id, best_pool
end

for _, id in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
  if redis.call('HGET', item_key(id), 'nonce') == ARGV[9] then return claimed(id) end
end
local id, pool = choose()
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
move(id, f[1], 'queued', 'running', now)
return claimed(id)
