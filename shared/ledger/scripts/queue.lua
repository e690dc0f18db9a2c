-- The queue: lanes, shares and their turns; part of every script.

-- A pool is a model, an engine and features, which a worker must offer to claim an item. Each pool has its own queue and
-- pace.
-- A share is a priority and a tenant; a lane holds the queued items of one share that want the same adapters. A lane
-- is scored by its oldest item, and the shares take turns, so that choosing costs the same however many there are.
local function share_of(lane) return lane:match('^%d+|[^|]*') end
local function adapters_of(lane) return lane:sub(#share_of(lane) + 2) end

local function rescore_lane(pool, lane)
  local head = redis.call('ZRANGE', lane_key(pool, lane), 0, 0, 'WITHSCORES')
  if head[1] then
    redis.call('ZADD', lanes_key(pool, share_of(lane)), head[2], lane)
  else
    redis.call('ZREM', lanes_key(pool, share_of(lane)), lane)
  end
end

-- A pool's shares take turns: by priority, then fewest running items, then longest unserved. `turns` is a sorted set
-- of equal scores, so texts order it: no number of items or ms is too large for its score. `turn_entries` is the text
-- of each share, by which it is found again.
local MOST_RUNNING, LAST_PRIORITY = 999999, 9

-- `busy` and `served` are tables with the values of these hashes by tenant.
local function turn_entry_of(share, busy, served)
  local priority, tenant = share:match('^(%d+)|(.*)$')
  local running, served_ms = tonumber(busy[tenant] or 0), tonumber(served[tenant] or 0)
  return string.format('%s|%06d|%014.0f|%s', priority, math.min(math.max(running, 0), MOST_RUNNING), served_ms, tenant)
end

local function turn_entry(pool, share)
  local tenant = share:match('^%d+|(.*)$')
  local busy = {[tenant] = redis.call('HGET', busy_key(pool), tenant)}
  local served = {[tenant] = redis.call('HGET', served_key(pool), tenant)}
  return turn_entry_of(share, busy, served)
end

local function remove_turn(pool, share)
  local entry = redis.call('HGET', turn_entries_key(pool), share)
  if not entry then return end
  redis.call('ZREM', turns_key(pool), entry)
  redis.call('HDEL', turn_entries_key(pool), share)
end

-- `before` is the share's present entry, or false.
local function replace_turn(pool, share, before)
  local entry = turn_entry(pool, share)
  if before == entry then return end
  if before then redis.call('ZREM', turns_key(pool), before) end
  redis.call('ZADD', turns_key(pool), 0, entry)
  redis.call('HSET', turn_entries_key(pool), share, entry)
end

local function set_turn(pool, share)
  replace_turn(pool, share, redis.call('HGET', turn_entries_key(pool), share))
end

-- Correct the turns of a tenant whose running items or last claim changed.
local function update_turns(pool, tenant)
  local shares = {}
  for priority = 0, LAST_PRIORITY do shares[priority + 1] = priority .. '|' .. tenant end
  for position, entry in ipairs(redis.call('HMGET', turn_entries_key(pool), unpack(shares))) do
    if entry then replace_turn(pool, shares[position], entry) end
  end
end

-- Of one command; Lua hands over some 8,000 values at most.
local ENTRIES_AT_ONCE = 1000

-- Queue items of one lane, given as {accept order, id, accept order, id, ...}. One that was requeued goes to the head;
-- release.lua can give it a new order.
local function enqueue_all(entries, pool, lane)
  for first = 1, #entries, ENTRIES_AT_ONCE do
    local last = math.min(first + ENTRIES_AT_ONCE - 1, #entries)
    redis.call('ZADD', pending_key(pool), unpack(entries, first, last))
    redis.call('ZADD', lane_key(pool, lane), unpack(entries, first, last))
  end
  local items = #entries / 2
  if redis.call('HINCRBY', shares_key(pool), share_of(lane), items) == items then set_turn(pool, share_of(lane)) end
  rescore_lane(pool, lane)
end

local function enqueue(id, pool, lane, order)
  enqueue_all({order, id}, pool, lane)
end

local function dequeue(id, pool, lane)
  if redis.call('ZREM', pending_key(pool), id) == 0 then return end
  redis.call('ZREM', lane_key(pool, lane), id)
  if redis.call('HINCRBY', shares_key(pool), share_of(lane), -1) <= 0 then
    redis.call('HDEL', shares_key(pool), share_of(lane))
    remove_turn(pool, share_of(lane))
  end
  rescore_lane(pool, lane)
end

-- Remove an item whose lane nobody knows any more. This reads all lanes of the pool.
local function remove_lost(id, pool)
  for _, share in ipairs(redis.call('HKEYS', shares_key(pool))) do
    for _, lane in ipairs(redis.call('ZRANGE', lanes_key(pool, share), 0, -1)) do
      if redis.call('ZSCORE', lane_key(pool, lane), id) then return dequeue(id, pool, lane) end
    end
  end
  redis.call('ZREM', pending_key(pool), id)
end
