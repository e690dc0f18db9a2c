-- Pick the best queued item for one slot, raise its fence and start its lease.
-- Order: an item that waited past the bound; then priority; then the tenant with fewest running items, longest
-- unserved; then the adapter this slot has warm; then the oldest adapter that no other slot has warm; then the oldest.
-- ARGV: 2 model, 3 slot, 4 boot, 5 adapter key warm in this slot, 6 ttl ms, 7 wait bound ms, 8 slot ttl ms
-- Returns {item id, fence, attempt, spec JSON, queued ms, now} or nil
local now = now_ms()
local model, slot, warm = ARGV[2], ARGV[3], ARGV[5]
local pending = P .. 'pending:' .. model

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

-- The lanes that are left after priority and fair share, as {lane, adapter key}.
local function candidates()
  local best, lanes = nil, {}
  for _, lane in ipairs(redis.call('HKEYS', P .. 'lanes:' .. model)) do
    local priority, tenant, adapter = lane:match('^(%d+)|([^|]*)|(.*)$')
    local share = {
      tonumber(priority),
      tonumber(redis.call('HGET', P .. 'busy:' .. model, tenant) or 0),
      tonumber(redis.call('HGET', P .. 'served:' .. model, tenant) or 0),
    }
    local order = 0
    for i = 1, 3 do
      if best and order == 0 and share[i] ~= best[i] then order = share[i] < best[i] and -1 or 1 end
    end
    if not best or order < 0 then best, lanes = share, {} end
    if order <= 0 then lanes[#lanes + 1] = {lane, adapter} end
  end
  return lanes
end

local function choose()
  local head = redis.call('ZRANGE', pending, 0, 0)[1]
  if not head then return nil end
  if now - tonumber(redis.call('HGET', item_key(head), 'queued_ms')) > tonumber(ARGV[7]) then return head end
  local elsewhere = warm_elsewhere()
  local best, best_rank, best_seq
  for _, c in ipairs(candidates()) do
    local first = redis.call('ZRANGE', P .. 'lane:' .. model .. ':' .. c[1], 0, 0, 'WITHSCORES')
    local rank = 1
    if c[2] == warm then rank = 0 elseif elsewhere[c[2]] then rank = 2 end
    local seq = tonumber(first[2])
    if not best or rank < best_rank or (rank == best_rank and seq < best_seq) then
      best, best_rank, best_seq = first[1], rank, seq
    end
  end
  return best
end

local id = choose()
if not id then return nil end
local key = item_key(id)
local f = fields(key, 'job', 'tenant', 'lane', 'spec', 'queued_ms')
dequeue(id, model, f[3])
local fence = redis.call('HINCRBY', key, 'fence', 1)
local attempt = redis.call('HINCRBY', key, 'attempt', 1)
redis.call('HSET', key, 'slot', slot, 'boot', ARGV[4], 'started_ms', now)
redis.call('ZADD', P .. 'leases', now + tonumber(ARGV[6]), id)
redis.call('HINCRBY', P .. 'busy:' .. model, f[2], 1)
redis.call('HSET', P .. 'served:' .. model, f[2], now)
move(id, f[1], 'queued', 'running', now)
return {id, tostring(fence), tostring(attempt), f[4], f[5], tostring(now)}
