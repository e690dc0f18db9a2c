-- The choice of an item for a slot; part of the scripts that claim or peek.
--
-- Arguments of those scripts that are read here:
--   pools          pools whose items this slot claims
--   large_pools    pools whose items it claims while no live slot has more memory
--   slot, warm     the slot's name, and the key of the adapters that it has merged
--   wait_bound_ms  an item accepted longer ago goes before everything else
--   slot_ttl_ms    a slot whose last heartbeat is older counts as dead
-- Keys: pending, item, shares, turns, turn_entries, busy, served, lanes, lane, slots, slot, slot_names, slots_missing,
--   slot_kinds, kinds, unhealthy_slots, warm, next_adapters, warm_counts, memory, claims
-- Queues and leases are only read, except for entries that a process of an earlier version left in a queue; the indexes
-- (turns, turn_entries, warm, next_adapters, warm_counts, memory) are corrected on the way.

-- The name in a lane of the adapters that the slot has merged.
local OWN_ADAPTERS = short_adapters(args.warm)

-- How many lanes of a share are compared: some at first, because one of them suits a small fleet, and then the others.
-- Beyond that the oldest lane is chosen, warm elsewhere or not.
local LANES_AT_FIRST, LANES_COMPARED = 8, 16

-- Whether one list of numbers sorts before another of the same length.
local function precedes(one, other)
  for position = 1, #one do
    if one[position] ~= other[position] then return one[position] < other[position] end
  end
  return false
end

-- Shares written by one call; Lua passes at most some 8,000 arguments.
local SHARES_AT_ONCE = 1000

-- Build the turns from the shares: 20,000 of them take 0.13 s, and took 0.3 s one by one.
local function build_turns(pool)
  redis.call('DEL', turns_key(pool), turn_entries_key(pool))
  local busy, served = read_hash(busy_key(pool)), read_hash(served_key(pool))
  local shares = redis.call('HKEYS', shares_key(pool))
  for first = 1, #shares, SHARES_AT_ONCE do
    local turns, entries = {}, {}
    for position = first, math.min(first + SHARES_AT_ONCE - 1, #shares) do
      local entry = turn_entry_of(shares[position], busy, served)
      turns[#turns + 1], turns[#turns + 2] = 0, entry
      entries[#entries + 1], entries[#entries + 2] = shares[position], entry
    end
    redis.call('ZADD', turns_key(pool), unpack(turns))
    redis.call('HSET', turn_entries_key(pool), unpack(entries))
  end
end

-- Wrong entries that one step corrects singly before it builds new turns.
local CORRECTED_AT_ONCE = 20

-- Return the first entry of the turns, its share and its priority; nil if there are no turns.
local function head_turn(pool)
  local entry = redis.call('ZRANGE', turns_key(pool), 0, 0)[1]
  if not entry then return end
  local priority, tenant = entry:match('^(%d+)|%d+|%d+|(.*)$')
  return entry, priority .. '|' .. tenant, tonumber(priority)
end

-- Return the next share (by priority, then fewest running items, then longest unserved) and its priority; nil if the pool
-- has no shares.
-- Processes of an earlier version do not update the turns. So they are built again when their number is wrong, the first
-- one is checked before it counts, and each claim checks some others: see check_turns.
local function next_share(pool)
  if redis.call('ZCARD', turns_key(pool)) ~= redis.call('HLEN', shares_key(pool)) then build_turns(pool) end
  for _ = 1, CORRECTED_AT_ONCE do
    local entry, share, priority = head_turn(pool)
    if not entry then break end
    local is_queued = redis.call('HEXISTS', shares_key(pool), share) == 1
    if is_queued and entry == turn_entry(pool, share) then return share, priority end
    -- The entry itself, because `turn_entries` may name another one for its share, or none.
    redis.call('ZREM', turns_key(pool), entry)
    if is_queued then set_turn(pool, share) else remove_turn(pool, share) end
  end
  build_turns(pool)
  local _, share, priority = head_turn(pool)
  return share, priority
end

-- Return the first of some lanes of a share whose adapters no other live slot has merged or merges next.
local function first_free(share, lanes)
  if #lanes == 0 then return nil end
  local own_warm, own_next = redis.call('HGET', WARM, args.slot), redis.call('HGET', NEXT_ADAPTERS, args.slot)
  local keys = {}
  for position, lane in ipairs(lanes) do keys[position] = short_adapters(lane:sub(#share + 2)) end
  for position, count in ipairs(redis.call('HMGET', WARM_COUNTS, unpack(keys))) do
    local key = keys[position]
    if not count or tonumber(count) <= (key == own_warm and 1 or 0) + (key == own_next and 1 or 0) then
      return lanes[position]
    end
  end
end

-- A slot that may go on with its adapters does not in one of so many claims. So where tenants have equal parts, the part that
-- is a slot larger than others moves on, and the oldest overdue item does not wait for all that were accepted soon after it.
local CLAIMS_KEPT = 8

-- Whether the slot follows the order of the queue with its next claim, whatever adapters it has. `number` is that of its last one.
local function follows_order(number) return number and number % CLAIMS_KEPT == 0 end

-- Return the share of the slot's last item if the slot goes on with its adapters although it is another tenant's turn, which
-- has no items with these adapters; nil if it follows the turn.
-- The last item does not count as running, because it is about to end. Otherwise its tenant would never be the one with
-- fewest running items, and each image of a slot would need the adapters of another tenant.
local function kept_share(pool, turn)
  local last, number = fields(claims_key(args.slot), 'last', 'number')
  if not last then return nil end
  local state, slot, lane, last_pool = fields(item_key(last), 'state', 'slot', 'lane', 'pool')
  if state ~= 'running' or slot ~= args.slot or last_pool ~= pool then return nil end
  local share = share_of(lane)
  local priority, tenant = share:match('^(%d+)|(.*)$')
  local turn_priority, turn_tenant = turn:match('^(%d+)|(.*)$')
  if tenant == turn_tenant or priority ~= turn_priority then return nil end
  local running, turn_running = fields(busy_key(pool), tenant, turn_tenant)
  -- A tenant with nothing running does not wait for anyone's adapters. The slot's own item counts even if an eviction
  -- has lost the number.
  local ahead = tonumber(running or 1) - 1 - tonumber(turn_running or 0)
  if not turn_running or ahead > 0 or (ahead == 0 and follows_order(number)) then return nil end
  local function has_own_adapters(any) return redis.call('ZSCORE', lanes_key(pool, any), any .. '|' .. OWN_ADAPTERS) end
  if has_own_adapters(share) and not has_own_adapters(turn) then return share end
end

local function next_lane(pool, share, now)
  local lanes = lanes_key(pool, share)
  local warm_lane = share .. '|' .. OWN_ADAPTERS
  if redis.call('ZSCORE', lanes, warm_lane) then return warm_lane end
  local whole_lane = share .. '|' .. args.warm
  if whole_lane ~= warm_lane and redis.call('ZSCORE', lanes, whole_lane) then return whole_lane end
  forget_dead_slots(now, args.slot_ttl_ms)
  local oldest = redis.call('ZRANGE', lanes, 0, LANES_AT_FIRST - 1)
  local free = first_free(share, oldest)
  if free or #oldest < LANES_AT_FIRST then return free or oldest[1] end
  return first_free(share, redis.call('ZRANGE', lanes, LANES_AT_FIRST, LANES_COMPARED - 1)) or oldest[1]
end

-- Return why an item of a lane is claimed; `head_lane` is the lane of the pool's oldest item. See ClaimReason in claim.py.
local function reason_of(lane, head_lane)
  local share, head_share = share_of(lane), share_of(head_lane)
  if head_share ~= share then
    return head_share:match('^%d+') > share:match('^%d+') and 'priority' or 'share'
  end
  local adapters = adapters_of(lane)
  return (adapters == OWN_ADAPTERS or adapters == args.warm) and 'warm' or 'cold'
end

-- The part of the wait bound within which accepts count as simultaneous once their items are overdue.
local SIMULTANEOUS = 0.1

-- Return an overdue item for which the slot has the adapters merged, if it was accepted soon after the oldest overdue one
-- and by the same share; else nil. Without it, a queue longer than the wait bound is first in, first out, and an adapter
-- swap for each image. In each row of CLAIMS_KEPT claims, a slot takes the oldest item once.
local function warm_overdue(pool, head_lane, head_accepted_ms, now)
  if not head_lane or adapters_of(head_lane) == OWN_ADAPTERS then return nil end
  if follows_order(redis.call('HGET', claims_key(args.slot), 'number')) then return nil end
  local id = redis.call('ZRANGE', lane_key(pool, share_of(head_lane) .. '|' .. OWN_ADAPTERS), 0, 0)[1]
  local accepted_ms = id and tonumber(redis.call('HGET', item_key(id), 'accepted_ms') or now)
  if not id or now - accepted_ms <= args.wait_bound_ms then return nil end
  if accepted_ms - head_accepted_ms <= SIMULTANEOUS * args.wait_bound_ms then return id end
end

-- Return the best item of one pool, its rank among those of other pools (overdue, priority, accept order), and the reason
-- of its claim.
local function best_of_pool(pool, now)
  local head = redis.call('ZRANGE', pending_key(pool), 0, 0, 'WITHSCORES')
  if not head[1] then return nil end
  -- From the accept, not from the last requeue: an item whose workers keep dying must not start over.
  -- An entry that a process of an earlier version left has no time; see best_of_large_pool.
  local accepted_ms, head_lane = fields(item_key(head[1]), 'accepted_ms', 'lane')
  if now - tonumber(accepted_ms or now) > args.wait_bound_ms then
    return warm_overdue(pool, head_lane, tonumber(accepted_ms), now) or head[1], {0, 0, tonumber(head[2])}, 'overdue'
  end
  local share, priority = next_share(pool)
  -- Shares that are lost, as by an eviction, count again with the next accepts.
  if not share then
    return head[1], {1, LAST_PRIORITY, tonumber(head[2])}, head_lane and reason_of(head_lane, head_lane)
  end
  local kept = kept_share(pool, share)
  local lane = next_lane(pool, kept or share, now)
  local item = redis.call('ZRANGE', lane_key(pool, lane), 0, 0, 'WITHSCORES')
  local why = reason_of(lane, head_lane or lane)
  -- Not because of its turn.
  if kept and why == 'share' then why = 'warm' end
  return item[1], {1, priority, tonumber(item[2])}, why
end

-- Return the best item of one pool of large items as `best_of_pool` does; nil if the pool is empty or another live slot has more
-- memory.
local function best_of_large_pool(pool, now)
  if redis.call('ZCARD', pending_key(pool)) == 0 then return nil end
  local own_gib = redis.call('ZSCORE', memory_key(pool), args.slot)
  if not own_gib or tonumber(own_gib) ~= largest_memory(pool, now) then return nil end
  while true do
    local id, rank, why = best_of_pool(pool, now)
    if not id or redis.call('HGET', item_key(id), 'state') == 'queued' then return id, rank, why end
    -- A process of an earlier version canceled it, and looked for it in the pool of its job only.
    remove_lost(id, pool)
  end
end

-- Return the best queued item for the slot, its pool and the reason of its claim; nil when all its pools are empty.
-- Order: an item that waited past the bound; then priority; then, in its pool, the tenant with fewest running items,
-- longest unserved (the tenant of the slot's adapters among those with as many); then the adapter this slot has warm; then
-- the oldest adapter that no other slot has warm or merges next; then the oldest.
local function choose(now)
  local best_rank, best_id, best_pool, best_why
  local function compare(pool, id, rank, why)
    if id and (not best_rank or precedes(rank, best_rank)) then
      best_rank, best_id, best_pool, best_why = rank, id, pool, why
    end
  end
  for _, pool in ipairs(args.pools) do compare(pool, best_of_pool(pool, now)) end
  for _, pool in ipairs(args.large_pools) do compare(pool, best_of_large_pool(pool, now)) end
  return best_id, best_pool, best_why
end

