-- Pick the best queued item for one slot, raise its fence and start its lease.
--
-- Arguments: those of choose.lua, and
--   boot          identity of the slot's process
--   number        counts the claims of the process that gave it an item: a claim whose reply was lost is repeated
--                 with the same number, until a reply has brought an item
--   lease_ttl_ms  length of the lease
--   probed_outage id of the last reported outage of the storage after which this worker reached it
-- Keys: those of choose.lua, and leases, job, claims, slots, storage_outage, deadlines, totals
-- Returns {item id, fence, attempt, texts that make up the spec, queued since ms, now ms, pool, why, number
--   of slots, trace of the job or nil}, or nil if nothing is queued for the slot, or
--   the highest number that was given an item, if this number was given one that the slot does not own any more, or
--   {'late'} if it canceled many items whose deadline has passed, and there may be more: claim again with the same number
--   {'storage_outage', id} if another worker reported an outage and this one has to probe the storage first
local now = now_ms()
local nonce = args.boot .. ':' .. args.number
local claims = claims_key(args.slot)

-- Long after the last claim of any slot that comes back under its name.
local CLAIMS_TTL_S = 86400

local function trace_of(job) return redis.call('HGET', job_key(job), 'trace') end

local function claim_of(id)
  local fence, attempt, queued_ms, whole, pool, why =
    fields(item_key(id), 'fence', 'attempt', 'queued_ms', 'spec', 'pool', 'why')
  return {id, fence, attempt, spec_texts(id, whole), queued_ms, now, pool, why, redis.call('ZCARD', SLOTS),
    trace_of(job_and_index(id))}
end

-- Record the slot's claim, and drop the claims that a process of an earlier version ended.
local function record_claim(id, record)
  for field in pairs(record) do
    -- Only the ids of items contain a colon.
    if field:find(':', 1, true) then
      local state, slot = fields(item_key(field), 'state', 'slot')
      -- An item that ended keeps the slot.
      if state ~= 'running' or slot ~= args.slot then redis.call('HDEL', claims, field) end
    end
  end
  redis.call('HSET', claims, 'boot', args.boot, 'number', args.number, 'last', id, id, nonce)
  redis.call('EXPIRE', claims, CLAIMS_TTL_S)
end

-- Forget tenants that were last served before the wait bound: they are next with or without their entry. The same for a
-- time in the future, from before the clock went back: the tenant would be last until then.
-- Four random entries for each claim keep the hash small, because a claim adds one entry at most.
local function forget_served(pool)
  local served = served_key(pool)
  local sample = redis.call('HRANDFIELD', served, 4, 'WITHVALUES')
  for position = 1, #sample, 2 do
    local tenant, served_ms = sample[position], tonumber(sample[position + 1])
    if now - served_ms > args.wait_bound_ms or served_ms > now then
      redis.call('HDEL', served, tenant)
      update_turns(pool, tenant)
    end
  end
end

-- Correct a few random entries of the indexes, which processes of an earlier version do not keep. An entry is wrong
-- only after such a process wrote.
local function check_turns(pool, claimed_share)
  for _, share in ipairs(redis.call('HRANDFIELD', shares_key(pool), 2)) do
    if share ~= claimed_share then set_turn(pool, share) end
  end
end

local function check_warm_of_slots()
  for _, slot in ipairs(redis.call('ZRANDMEMBER', SLOTS, 2)) do
    set_adapters(WARM, slot, redis.call('HGET', slot_key(slot), 'warm') or nil)
  end
end

local function check_warm()
  for _, slot in ipairs(redis.call('HRANDFIELD', WARM, 2)) do
    if not redis.call('ZSCORE', SLOTS, slot) then set_adapters(WARM, slot, nil) end
  end
end

local function check_next()
  for _, slot in ipairs(redis.call('HRANDFIELD', NEXT_ADAPTERS, 2)) do
    if not keeps_indexes(slot) then set_adapters(NEXT_ADAPTERS, slot, nil) end
  end
end

-- In turn, and not with each claim: with thousands of slots one of them takes a twentieth of a claim.
local CHECKS = {[1] = check_warm_of_slots, [3] = check_warm, [5] = check_next}
local CLAIMS_BETWEEN_CHECKS = 6

local record = read_hash(claims)
if record.boot == args.boot and tonumber(record.number) >= args.number then
  local last = record.last
  local state, owner = fields(item_key(last), 'state', 'nonce')
  if state == 'running' and owner == nonce then
    -- A full term: nobody has renewed the lease, because nobody knew of it.
    redis.call('ZADD', LEASES, 'XX', now + args.lease_ttl_ms, last)
    return claim_of(last)
  end
  return tonumber(record.number)
end

-- The caretakers cancel such items too. Here no more than these in one step, so that a claim costs the same for any number.
local LATE_AT_ONCE = 20

-- Return the best item that may still start, its pool and the reason of its claim.
local function choose_in_time()
  for _ = 1, LATE_AT_ONCE do
    local id, pool, why = choose(now)
    if not id then return nil end
    local job, lane = fields(item_key(id), 'job', 'lane')
    if not is_too_late(job, now) then return id, pool, why end
    cancel_late(id, job, pool, lane, now)
  end
  return 'late'
end

local id, pool, why = choose_in_time()
if not id then return nil end
if id == 'late' then return {'late'} end
-- No GPU time is spent on an image that perhaps cannot be stored.
local outage = redis.call('GET', STORAGE_OUTAGE)
if outage and outage ~= args.probed_outage then return {'storage_outage', outage} end
local key = item_key(id)
local job, tenant, lane, fence, attempt, queued_ms, whole =
  fields(key, 'job', 'tenant', 'lane', 'fence', 'attempt', 'queued_ms', 'spec')
dequeue(id, pool, lane)
redis.call('HSET', key, 'fence', fence + 1, 'attempt', attempt + 1, 'slot', args.slot, 'boot', args.boot,
  'nonce', nonce, 'started_ms', now, 'lease_ttl_ms', args.lease_ttl_ms, 'why', why)
redis.call('ZADD', LEASES, now + args.lease_ttl_ms, id)
redis.call('HINCRBY', busy_key(pool), tenant, 1)
redis.call('HSET', served_key(pool), tenant, now)
redis.call('HINCRBY', TOTALS, 'claims_' .. why, 1)
update_turns(pool, tenant)
record_claim(id, record)
forget_served(pool)
check_turns(pool, share_of(lane))
local check = CHECKS[args.number % CLAIMS_BETWEEN_CHECKS]
if check then check() end
set_adapters(NEXT_ADAPTERS, args.slot, adapters_of(lane))
move(id, job, 'queued', 'running', now)
return {id, fence + 1, attempt + 1, spec_texts(id, whole), queued_ms, now, pool, why, redis.call('ZCARD', SLOTS),
  trace_of(job)}
