-- Read the queues of some pools, so far as a forecast needs them; changes nothing. outlook_lanes.lua reads their items: several
-- short steps, between which Redis serves others, instead of one that sees everything at the same time.
--
-- Arguments:
--   pools   the pools that the slots of a model serve
--   shares  number of shares that are looked at in all pools, evenly chosen in the order of their turns
--   lanes   number of lanes that are looked at, the oldest of these shares
-- Keys: seq, pending, shares, turns, turn_entries, busy, served, lanes, warm_counts, pace
-- Returns JSON {sequence, leases: number of running items of all models, pools}. cjson writes an empty list as {}.
--   pools: {pool, pace_ms or -1, number of shares, sampled} of each that has queued items, or a pace
--   sampled: {priority, tenant, running items, last claim ms, queued items, number of lanes, lanes} in the order of turns
--   lanes: {lane, what follows its share, name of the adapters, slots that have them merged or merge them next}

-- Return some shares of a pool: their names, and texts of priority, running items, last claim and tenant.
local function read_turns(pool, most)
  local turns, shares, entries = redis.call('ZCARD', turns_key(pool)), {}, {}
  if turns == redis.call('HLEN', shares_key(pool)) then
    for position, turn in ipairs(read_spread(turns_key(pool), turns, most)) do
      local priority, tenant = turn[1]:match('^(%d+)|%d+|%d+|(.*)$')
      shares[position], entries[position] = priority .. '|' .. tenant, turn[1]
    end
    return shares, entries
  end
  -- Processes of an earlier version fill the queue, and do not know the turns.
  shares = redis.call('HRANDFIELD', shares_key(pool), most)
  for position, share in ipairs(shares) do entries[position] = turn_entry(pool, share) end
  return shares, entries
end

local function read_share(pool, share, entry, queued, most_lanes)
  local priority, running, last_claim, tenant = entry:match('^(%d+)|(%d+)|(%d+)|(.*)$')
  local lanes, names = {}, {}
  local oldest = redis.call('ZRANGE', lanes_key(pool, share), 0, most_lanes - 1)
  for position, lane in ipairs(oldest) do names[position] = short_adapters(adapters_of(lane)) end
  local warm = #names > 0 and redis.call('HMGET', WARM_COUNTS, unpack(names)) or {}
  for position, lane in ipairs(oldest) do
    lanes[position] = {lane, adapters_of(lane), names[position], tonumber(warm[position] or 0)}
  end
  return {tonumber(priority), tenant, tonumber(running), tonumber(last_claim), queued,
    redis.call('ZCARD', lanes_key(pool, share)), lanes}
end

local function read_pool(pool, parts)
  local shares, entries = read_turns(pool, math.max(math.floor(args.shares / parts), 1))
  if #shares == 0 then return {} end
  local most_lanes = math.max(math.floor(args.lanes / parts / #shares), 1)
  local sampled, counts = {}, redis.call('HMGET', shares_key(pool), unpack(shares))
  for position, share in ipairs(shares) do
    sampled[position] = read_share(pool, share, entries[position], tonumber(counts[position] or 0), most_lanes)
  end
  return sampled
end

local is_filled, filled, pools = {}, 0, {}
for _, pool in ipairs(args.pools) do
  is_filled[pool] = redis.call('ZCARD', pending_key(pool)) > 0
  if is_filled[pool] then filled = filled + 1 end
end
for _, pool in ipairs(args.pools) do
  local pace_ms = tonumber(redis.call('GET', pace_key(pool)) or -1)
  if is_filled[pool] then
    pools[#pools + 1] = {pool, pace_ms, redis.call('HLEN', shares_key(pool)), read_pool(pool, filled)}
  elseif pace_ms >= 0 then
    pools[#pools + 1] = {pool, pace_ms, 0, {}}
  end
end
return cjson.encode({
  sequence = tonumber(redis.call('GET', SEQUENCE) or 0), leases = redis.call('ZCARD', LEASES), pools = pools,
})
