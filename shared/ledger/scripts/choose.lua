-- The choice of an item for a slot; follows the prelude in the scripts that claim or peek.
--
-- Arguments of those scripts that are read here:
--   pools          pools whose items this slot claims
--   slot, warm     the slot's name, and the key of the adapters that it has merged
--   wait_bound_ms  an item accepted longer ago goes before everything else
--   slot_ttl_ms    a slot whose last heartbeat is older counts as dead
-- Keys read: pending, item, shares, busy, served, lanes, lane, slots, slot

-- How many lanes of a share are compared at most. Beyond that the oldest lane is chosen, warm elsewhere or not.
local LANES_COMPARED = 64

-- Return the set of adapter keys that other live slots have merged.
local function warm_elsewhere(now)
  local warm_keys = {}
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', SLOTS, now - args.slot_ttl_ms, '+inf')) do
    if slot ~= args.slot then
      local adapter_key = redis.call('HGET', slot_key(slot), 'warm')
      if adapter_key then warm_keys[adapter_key] = true end
    end
  end
  return warm_keys
end

-- Whether one list of numbers sorts before another of the same length.
local function precedes(one, other)
  for position = 1, #one do
    if one[position] ~= other[position] then return one[position] < other[position] end
  end
  return false
end

-- Return the next share (by priority, then fewest running items, then longest unserved) and its priority.
local function next_share(pool)
  local best_rank, best_share
  for _, share in ipairs(redis.call('HKEYS', shares_key(pool))) do
    local priority, tenant = share:match('^(%d+)|(.*)$')
    local rank = {
      tonumber(priority),
      tonumber(redis.call('HGET', busy_key(pool), tenant) or 0),
      tonumber(redis.call('HGET', served_key(pool), tenant) or 0),
    }
    if not best_rank or precedes(rank, best_rank) then best_rank, best_share = rank, share end
  end
  return best_share, best_rank[1]
end

local function next_lane(pool, share, now)
  local lanes = lanes_key(pool, share)
  local warm_lane = share .. '|' .. args.warm
  if redis.call('ZSCORE', lanes, warm_lane) then return warm_lane end
  local taken = warm_elsewhere(now)
  local oldest = redis.call('ZRANGE', lanes, 0, LANES_COMPARED - 1)
  for _, lane in ipairs(oldest) do
    local adapter_key = lane:sub(#share + 2)
    if not taken[adapter_key] then return lane end
  end
  return oldest[1]
end

-- Return the best item of one pool, and its rank among those of other pools: overdue, priority, accept order.
local function best_of_pool(pool, now)
  local head = redis.call('ZRANGE', pending_key(pool), 0, 0, 'WITHSCORES')
  if not head[1] then return nil end
  -- From the accept, not from the last requeue: an item whose workers keep dying must not start over.
  if now - tonumber(redis.call('HGET', item_key(head[1]), 'accepted_ms')) > args.wait_bound_ms then
    return head[1], {0, 0, tonumber(head[2])}
  end
  local share, priority = next_share(pool)
  local item = redis.call('ZRANGE', lane_key(pool, next_lane(pool, share, now)), 0, 0, 'WITHSCORES')
  return item[1], {1, priority, tonumber(item[2])}
end

-- Return the best queued item for the slot, and its pool; nil when all its pools are empty.
-- Order: an item that waited past the bound; then priority; then, in its pool, the tenant with fewest running items,
-- longest unserved; then the adapter this slot has warm; then the oldest adapter that no other slot has warm; then the
-- oldest.
local function choose(now)
  local best_rank, best_id, best_pool
  for _, pool in ipairs(args.pools) do
    local id, rank = best_of_pool(pool, now)
    if id and (not best_rank or precedes(rank, best_rank)) then best_rank, best_id, best_pool = rank, id, pool end
  end
  return best_id, best_pool
end

