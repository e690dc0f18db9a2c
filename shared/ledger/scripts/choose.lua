-- The choice of an item for a slot; follows the prelude in the scripts that claim or peek.
--
-- Arguments of those scripts that are read here:
--   pools          pools whose items this slot claims
--   slot, warm     the slot's name, and the key of the adapters that it has merged
--   wait_bound_ms  an item accepted longer ago goes before everything else
--   slot_ttl_ms    a slot whose last heartbeat is older counts as dead
-- Keys: pending, item, shares, turns, turn_entries, busy, served, lanes, lane, slots, warm, warm_counts
-- Queues and leases are only read; the indexes (turns, turn_entries, warm, warm_counts) are corrected on the way.

-- How many lanes of a share are compared at most. Beyond that the oldest lane is chosen, warm elsewhere or not.
local LANES_COMPARED = 64

-- Return which of these adapter keys other live slots have merged, as a list of booleans.
local function warm_elsewhere(adapter_keys, now)
  forget_dead_slots(now, args.slot_ttl_ms)
  local own = redis.call('HGET', WARM, args.slot)
  local warm = {}
  for position, count in ipairs(redis.call('HMGET', WARM_COUNTS, unpack(adapter_keys))) do
    warm[position] = tonumber(count or 0) > (adapter_keys[position] == own and 1 or 0)
  end
  return warm
end

-- Whether one list of numbers sorts before another of the same length.
local function precedes(one, other)
  for position = 1, #one do
    if one[position] ~= other[position] then return one[position] < other[position] end
  end
  return false
end

-- The turns are an index of the shares, which processes of an earlier version do not keep. So it is built again when
-- its size is wrong, its head is checked before it counts, and each claim checks some of it: see check_turns.
local function complete_turns(pool)
  if redis.call('ZCARD', turns_key(pool)) == redis.call('HLEN', shares_key(pool)) then return end
  redis.call('DEL', turns_key(pool), turn_entries_key(pool))
  for _, share in ipairs(redis.call('HKEYS', shares_key(pool))) do set_turn(pool, share) end
end

-- Return the next share (by priority, then fewest running items, then longest unserved) and its priority.
local function next_share(pool)
  complete_turns(pool)
  while true do
    local entry = redis.call('ZRANGE', turns_key(pool), 0, 0)[1]
    -- Only if the index was as large as it should be, but named none of the shares.
    if not entry then return next_share(pool) end
    local priority, tenant = entry:match('^(%d+)|%d+|%d+|(.*)$')
    local share = priority .. '|' .. tenant
    if redis.call('HEXISTS', shares_key(pool), share) == 0 then
      remove_turn(pool, share)
    elseif entry == turn_entry(pool, share) then
      return share, tonumber(priority)
    else
      set_turn(pool, share)
    end
  end
end

local function next_lane(pool, share, now)
  local lanes = lanes_key(pool, share)
  local warm_lane = share .. '|' .. short_adapters(args.warm)
  if redis.call('ZSCORE', lanes, warm_lane) then return warm_lane end
  local whole_lane = share .. '|' .. args.warm
  if whole_lane ~= warm_lane and redis.call('ZSCORE', lanes, whole_lane) then return whole_lane end
  local oldest = redis.call('ZRANGE', lanes, 0, LANES_COMPARED - 1)
  local adapter_keys = {}
  for position, lane in ipairs(oldest) do adapter_keys[position] = short_adapters(lane:sub(#share + 2)) end
  for position, warm in ipairs(warm_elsewhere(adapter_keys, now)) do
    if not warm then return oldest[position] end
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

