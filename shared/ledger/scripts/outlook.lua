-- Read the queues of some pools, and the running items, so far as a forecast needs them; changes nothing.
--
-- Arguments:
--   pools  the pools that the slots of a model serve
-- Keys: seq, pending, shares, turns, lanes, lane, item, leases, next_adapters, warm_counts, pace
-- Returns JSON {sequence, leases: number of running items of all models, running, pools}. cjson writes an empty list as {}.
--   running: {started ms, share, pool, adapters, adapters that its slot prepares, shape} of running items of these pools
--   pools: {pool, pace_ms, queued, shares, sampled} of each that has queued items, or a pace; `shares` is their number, and
--     `sampled` has {priority, tenant, running items, last claim ms, queued items, number of lanes, lanes} of some of them, in
--     the order of their turns; `lanes` has {name, adapters, slots that have them merged, items, chunks} of the oldest, and `chunks`
--     has {accept order, accepted ms, items, shape} for some items in their order, each of which stands for itself and for
--     those that follow it

-- Shares, lanes and items that one step looks at, over all pools: the same for any queue.
local SHARES, LANES, ITEMS, LEASES_LOOKED_AT = 64, 128, 256, 64

-- Visit some of `count` ranks, evenly spaced from 0: the rank, and the number of ranks for which it stands.
local function visit_spread(count, most, visit)
  local visited = math.max(math.min(count, most), 1)
  for number = 0, visited - 1 do
    local rank, next_rank = math.floor(number * count / visited), math.floor((number + 1) * count / visited)
    if next_rank > rank then visit(rank, next_rank - rank) end
  end
end

-- Return some shares of a pool: their names, and texts of priority, running items, last claim and tenant.
local function read_turns(pool, most)
  local shares, entries, turns = {}, {}, redis.call('ZCARD', turns_key(pool))
  if turns ~= redis.call('HLEN', shares_key(pool)) then
    -- Processes of an earlier version fill the queue, and do not know the turns.
    shares = redis.call('HRANDFIELD', shares_key(pool), most)
    for position, share in ipairs(shares) do entries[position] = turn_entry(pool, share) end
    return shares, entries
  end
  visit_spread(turns, most, function(rank)
    local entry = redis.call('ZRANGE', turns_key(pool), rank, rank)[1]
    local priority, tenant = entry:match('^(%d+)|%d+|%d+|(.*)$')
    shares[#shares + 1], entries[#entries + 1] = priority .. '|' .. tenant, entry
  end)
  return shares, entries
end

local function read_share(pool, share, entry, queued, most_lanes)
  local priority, running, last_claim, tenant = entry:match('^(%d+)|(%d+)|(%d+)|(.*)$')
  local lanes = {}
  for position, lane in ipairs(redis.call('ZRANGE', lanes_key(pool, share), 0, most_lanes - 1)) do
    local name = adapters_of(lane)
    local warm = tonumber(redis.call('HGET', WARM_COUNTS, short_adapters(name)) or 0)
    lanes[position] = {name, short_adapters(name), warm, redis.call('ZCARD', lane_key(pool, lane)), {}}
  end
  return {tonumber(priority), tenant, tonumber(running), tonumber(last_claim), queued,
    redis.call('ZCARD', lanes_key(pool, share)), lanes}
end

local function read_chunks(pool, lane, count, most)
  local chunks = {}
  visit_spread(count, most, function(rank, items)
    local id, order = unpack(redis.call('ZRANGE', lane_key(pool, lane), rank, rank, 'WITHSCORES'))
    local accepted_ms, shape = fields(item_key(id), 'accepted_ms', 'shape')
    chunks[#chunks + 1] = {tonumber(order), tonumber(accepted_ms or 0), items, shape or ''}
  end)
  return chunks
end

local function read_pool(pool, parts)
  local most = math.max(math.floor(SHARES / parts), 1)
  local shares, entries = read_turns(pool, most)
  local most_lanes = math.max(math.floor(LANES / parts / math.max(#shares, 1)), 1)
  local sampled, lanes = {}, 0
  local counts = #shares > 0 and redis.call('HMGET', shares_key(pool), unpack(shares)) or {}
  for position, share in ipairs(shares) do
    sampled[position] = read_share(pool, share, entries[position], tonumber(counts[position] or 0), most_lanes)
    lanes = lanes + #sampled[position][7]
  end
  for _, share in ipairs(sampled) do
    for _, lane in ipairs(share[7]) do
      local key = share[1] .. '|' .. share[2] .. '|' .. lane[1]
      lane[5] = read_chunks(pool, key, lane[4], math.max(math.floor(ITEMS / parts / lanes), 1))
    end
  end
  return sampled
end

local function read_running(pools)
  local running, slots = {}, {}
  for _, id in ipairs(redis.call('ZRANDMEMBER', LEASES, LEASES_LOOKED_AT)) do
    local started_ms, pool, lane, shape, slot =
      fields(item_key(id), 'started_ms', 'pool', 'lane', 'shape', 'slot')
    if pools[pool] and started_ms and lane and slot then
      running[#running + 1] =
        {tonumber(started_ms), share_of(lane), pool, short_adapters(adapters_of(lane)), '', shape or ''}
      slots[#slots + 1] = slot
    end
  end
  local prepared = #slots > 0 and redis.call('HMGET', NEXT_ADAPTERS, unpack(slots)) or {}
  for position, item in ipairs(running) do item[5] = prepared[position] or item[4] end
  return running
end

local by_name, filled = {}, 0
for _, pool in ipairs(args.pools) do
  by_name[pool] = redis.call('ZCARD', pending_key(pool))
  if by_name[pool] > 0 then filled = filled + 1 end
end
local pools = {}
for _, pool in ipairs(args.pools) do
  local pace_ms = tonumber(redis.call('GET', pace_key(pool)) or nil)
  if by_name[pool] > 0 then
    pools[#pools + 1] = {pool, pace_ms or -1, by_name[pool], redis.call('HLEN', shares_key(pool)), read_pool(pool, filled)}
  elseif pace_ms then
    pools[#pools + 1] = {pool, pace_ms, 0, 0, {}}
  end
end
return cjson.encode({
  sequence = tonumber(redis.call('GET', SEQUENCE) or 0), leases = redis.call('ZCARD', LEASES),
  running = read_running(by_name), pools = pools,
})
