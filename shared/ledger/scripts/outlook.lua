-- Estimate how many queued items of their pools are claimed before some queued items; changes nothing.
--
-- Arguments:
--   items          list of {pool, first, last, slots}: two items of the pool, and the number of slots that serve it
--   wait_bound_ms  an item accepted longer ago goes before everything else
-- Keys: item, pending, shares, turns, busy, served, lanes, lane, pace
-- Returns JSON: a list of {first, last: items claimed before each, absent if it is not queued any more; pace_ms: absent
--   while no item of the pool has succeeded}
--
-- The estimate follows choose.lua: overdue items, then priorities, then turns of the shares, then accept order. It ignores
-- warm adapters. Shares get an equal number of slots as running items end, so a tenant that has more than its part of
-- them running waits until it has that part.
local now = now_ms()

-- Shares, lanes or overdue items that are read for one sum. The others count as much as these do on average.
local LOOKED_AT = 64

-- Call `visit` with the shares whose turns are between two texts: their name, queued items, entry, and the number of
-- shares for which each of them stands.
local function visit_turns(pool, from, to, visit)
  local turns = turns_key(pool)
  local entries = redis.call('ZRANGEBYLEX', turns, from, to, 'LIMIT', 0, LOOKED_AT)
  if #entries == 0 then return end
  local weight = 1
  if #entries == LOOKED_AT then weight = redis.call('ZLEXCOUNT', turns, from, to) / #entries end
  local shares = {}
  for position, entry in ipairs(entries) do
    local priority, tenant = entry:match('^(%d+)|%d+|%d+|(.*)$')
    shares[position] = priority .. '|' .. tenant
  end
  for position, queued in ipairs(redis.call('HMGET', shares_key(pool), unpack(shares))) do
    visit(shares[position], tonumber(queued or 0), entries[position], weight)
  end
end

-- Return how many items of a pool have waited past the bound: those at its head, in the order of their accepts.
local function count_overdue(pool)
  local none, all = 0, redis.call('ZCARD', pending_key(pool))
  while none < all do
    local middle = math.floor((none + all) / 2)
    local id = redis.call('ZRANGE', pending_key(pool), middle, middle)[1]
    if now - tonumber(redis.call('HGET', item_key(id), 'accepted_ms') or now) > args.wait_bound_ms then
      none = middle + 1
    else
      all = middle
    end
  end
  return none
end

-- Return how many overdue items each share has.
local function overdue_by_share(pool, overdue)
  local counts = {}
  if overdue == 0 then return counts end
  local ids = redis.call('ZRANGE', pending_key(pool), 0, math.min(overdue, LOOKED_AT) - 1)
  for _, id in ipairs(ids) do
    local lane = redis.call('HGET', item_key(id), 'lane')
    local share = lane and share_of(lane) or ''
    counts[share] = (counts[share] or 0) + overdue / #ids
  end
  return counts
end

-- Return how many items of a share were accepted before an order.
local function count_older(pool, share, order)
  local lanes, sum = lanes_key(pool, share), 0
  local older = redis.call('ZRANGEBYSCORE', lanes, '-inf', '(' .. order, 'LIMIT', 0, LOOKED_AT)
  for _, lane in ipairs(older) do sum = sum + redis.call('ZCOUNT', lane_key(pool, lane), '-inf', '(' .. order) end
  if #older < LOOKED_AT then return sum end
  return sum * redis.call('ZCOUNT', lanes, '-inf', '(' .. order) / #older
end

local function has_higher_priority(pool, priority, tenant)
  for higher = 0, priority - 1 do
    if redis.call('HEXISTS', shares_key(pool), higher .. '|' .. tenant) == 1 then return true end
  end
  return false
end

-- Count the claims before some items of one share that are not overdue, by the turns of the shares: a list in their order.
-- `older` is how many items of the share go before each of them.
local function count_by_turns(pool, share, older, slots, late)
  local priority, tenant = share:match('^(%d+)|(.*)$')
  local own_entry = turn_entry(pool, share)
  local higher, served_first = 0, {[tenant] = has_higher_priority(pool, tonumber(priority), tenant)}
  local function rest_of(other, queued) return math.max(queued - (late[other] or 0), 0) end

  visit_turns(pool, '-', '(' .. priority .. '|', function(other, queued, _, weight)
    served_first[other:match('^%d+|(.*)$')] = true
    higher = higher + weight * rest_of(other, queued)
  end)

  -- '}' follows '|'.
  local from, to = '[' .. priority .. '|', '(' .. priority .. '}'
  local part = math.floor(slots / math.max(redis.call('ZLEXCOUNT', turns_key(pool), from, to), 1))
  -- Return the running items of a share, and a text that orders those with as many.
  local function parts_of(entry, other_tenant)
    local running, last_claim = entry:match('^%d+|(%d+)|(.*)$')
    -- A tenant whose items of higher priority go first is served later than the others.
    return math.min(tonumber(running), part), (served_first[other_tenant] and '1' or '0') .. last_claim
  end
  local running, last_claim = parts_of(own_entry, tenant)

  local counts = {}
  for position, own in ipairs(older) do counts[position] = higher + own end
  local function add(other, queued, entry, weight)
    if other == share then return end
    local other_running, other_claim = parts_of(entry, other:match('^%d+|(.*)$'))
    local goes_first = other_running > running or (other_running == running and other_claim < last_claim)
    local ahead, rest = running - other_running + (goes_first and 1 or 0), rest_of(other, queued)
    for position, own in ipairs(older) do
      counts[position] = counts[position] + weight * math.min(rest, math.max(own + ahead, 0))
    end
  end
  -- Those that are before it now, and the others, so that each group is its own average.
  visit_turns(pool, from, '(' .. own_entry, add)
  visit_turns(pool, '(' .. own_entry, to, add)
  return counts
end

-- Return the positions of some items of one share, in the order of their accepts; false for one that is not queued.
local function positions_of(ids, pool, slots, pace_ms)
  local positions, waiting, older = {}, {}, {}
  local queued = redis.call('ZCARD', pending_key(pool))
  local overdue = count_overdue(pool)
  -- Without turns, processes of an earlier version fill the queue.
  local has_turns = redis.call('ZCARD', turns_key(pool)) == redis.call('HLEN', shares_key(pool))
  local late, share = has_turns and overdue_by_share(pool, overdue) or {}
  for position, id in ipairs(ids) do
    local rank = redis.call('ZRANK', pending_key(pool), id)
    positions[position] = rank
    -- Everything that was accepted before an overdue item is overdue too.
    if rank and rank >= overdue and has_turns then
      local lane, order = fields(item_key(id), 'lane', 'seq')
      share = share_of(lane)
      waiting[#waiting + 1] = position
      older[#older + 1] = math.max(count_older(pool, share, order) - (late[share] or 0), 0)
    end
  end
  if not share then return positions end
  for index, count in ipairs(count_by_turns(pool, share, older, slots, late)) do
    local position = waiting[index]
    count = math.min(overdue + count, queued - 1)
    if pace_ms then
      -- Once it is overdue, only items that were accepted earlier go before it.
      local accepted_ms = redis.call('HGET', item_key(ids[position]), 'accepted_ms')
      local claims = math.max(accepted_ms + args.wait_bound_ms - now, 0) * slots / math.max(pace_ms, 1)
      count = math.min(count, claims + positions[position])
    end
    positions[position] = math.floor(count + 0.5)
  end
  return positions
end

local reply = {}
for index, query in ipairs(args.items) do
  local pace_ms = tonumber(redis.call('GET', pace_key(query.pool)) or nil)
  local positions = positions_of({query.first, query.last}, query.pool, query.slots, pace_ms)
  reply[index] = {first = positions[1] or nil, last = positions[2] or nil, pace_ms = pace_ms}
end
return cjson.encode(reply)
