-- Put before the scripts that ask what a slot is to do next; after the prelude.
local function warm_elsewhere(slot, slot_ttl, now)
  local keys = {}
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', P .. 'slots', now - slot_ttl, '+inf')) do
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

local function next_lane(pool, share, slot, warm, slot_ttl, now)
  local lanes = lanes_key(pool, share)
  local mine = share .. '|' .. warm
  if redis.call('ZSCORE', lanes, mine) then return mine end
  local elsewhere = warm_elsewhere(slot, slot_ttl, now)
  local oldest = redis.call('ZRANGE', lanes, 0, 63)
  for _, lane in ipairs(oldest) do
    if not elsewhere[lane:sub(#share + 2)] then return lane end
  end
  return oldest[1]
end

-- The best item of one pool, and its rank among those of other pools: overdue, priority, accept order.
local function candidate(pool, slot, warm, wait_bound, slot_ttl, now)
  local head = redis.call('ZRANGE', P .. 'pending:' .. pool, 0, 0, 'WITHSCORES')
  if not head[1] then return nil end
  if now - tonumber(redis.call('HGET', item_key(head[1]), 'accepted_ms')) > wait_bound then
    return head[1], {0, 0, tonumber(head[2])}
  end
  local share, priority = next_share(pool)
  local item = redis.call('ZRANGE', lane_key(pool, next_lane(pool, share, slot, warm, slot_ttl, now)), 0, 0, 'WITHSCORES')
  return item[1], {1, priority, tonumber(item[2])}
end

-- The best queued item for one slot, and its pool.
-- Order: an item that waited past the bound; then priority; then, in its pool, the tenant with fewest running items,
-- longest unserved; then the adapter this slot has warm; then the oldest adapter that no other slot has warm; then the
-- oldest.
local function choose(pools, slot, warm, wait_bound, slot_ttl, now)
  local best, best_id, best_pool
  for _, pool in ipairs(pools) do
    local id, rank = candidate(pool, slot, warm, wait_bound, slot_ttl, now)
    if id and (not best or before(rank, best)) then best, best_id, best_pool = rank, id, pool end
  end
  return best_id, best_pool
end

