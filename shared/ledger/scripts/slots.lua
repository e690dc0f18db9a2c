-- Which slots are alive, what they have merged and what they merge next; part of the scripts that read or change it.

-- Record the adapter key of a slot in one of two indexes, or none (nil): by its name in a lane. WARM has the adapters that
-- the slot has merged, as its heartbeats report them. NEXT_ADAPTERS has those of the item that it claimed last or, since
-- then, prepares: slots that choose before its next heartbeat leave them to it. WARM_COUNTS counts the entries of both.
local function set_adapters(index, slot, adapter_key)
  set_counted(index, WARM_COUNTS, slot, adapter_key and short_adapters(adapter_key))
end

-- SLOT_NAMES has the slots in the order of their names, for the listing. Processes of an earlier version do not update it.
local function forget_slot(slot)
  redis.call('ZREM', SLOTS, slot)
  redis.call('ZREM', SLOT_NAMES, slot)
  set_adapters(WARM, slot, nil)
  set_adapters(NEXT_ADAPTERS, slot, nil)
  forget_kind(slot)
end

-- Slots forgotten in one step; the next step forgets the rest.
local DEAD_AT_ONCE = 20

local function forget_slots(since, until_ms)
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', SLOTS, since, until_ms, 'LIMIT', 0, DEAD_AT_ONCE)) do
    forget_slot(slot)
  end
end

local has_forgotten = false

-- Forget the slots whose heartbeat is too old, and those that died before the clock went back: once in a step.
local function forget_dead_slots(now, slot_ttl_ms)
  if has_forgotten then return end
  has_forgotten = true
  -- No heartbeat of any slot came for long: Redis stalled, or its clock was set. Slots that live may look dead until each
  -- has sent its next heartbeat. Recorded here, because the slots that prove it are about to be forgotten.
  local newest_ms = redis.call('ZRANGE', SLOTS, -1, -1, 'WITHSCORES')[2]
  if newest_ms and math.abs(now - newest_ms) > slot_ttl_ms / 2 then
    redis.call('SET', SLOTS_MISSING, 1, 'PX', slot_ttl_ms)
  end
  forget_slots('-inf', string.format('(%.0f', now - slot_ttl_ms))
  forget_slots(string.format('(%.0f', now + slot_ttl_ms), '+inf')
end

-- A pool of large items is for the live slots with the most memory. `memory:{pool}` orders its slots by memory; the field
-- `large_pools` of a slot's report has the time of the report, and the pools that it serves. An entry of `memory` counts
-- while the last report lists the pool: a process of an earlier version that takes over the name of a slot reports none.
local function record_memory(slot, pools, memory_gib, now)
  local reported = string.format('%.0f %s ', now, table.concat(pools, ' '))
  redis.call('HSET', slot_key(slot), 'large_pools', reported, 'indexed_ms', now)
  for _, pool in ipairs(pools) do
    if tonumber(redis.call('ZSCORE', memory_key(pool), slot) or -1) ~= memory_gib then
      redis.call('ZADD', memory_key(pool), memory_gib, slot)
    end
  end
end

local function serves_large_pool(slot, pool, now)
  local beat_ms = tonumber(redis.call('ZSCORE', SLOTS, slot) or nil)
  local reported = redis.call('HGET', slot_key(slot), 'large_pools')
  if not beat_ms or not reported or math.abs(now - beat_ms) > args.slot_ttl_ms then return false end
  local reported_ms, pools = reported:match('^(%d+)( .*)$')
  return tonumber(reported_ms) == beat_ms and pools:find(' ' .. pool .. ' ', 1, true) ~= nil
end

-- Return the memory, in GiB, of the largest live slot that serves a pool of large items; nil if no live slot does.
-- Entries of dead slots are dropped on the way, each of them once.
local function largest_memory(pool, now)
  forget_dead_slots(now, args.slot_ttl_ms)
  local may_be_missing = redis.call('EXISTS', SLOTS_MISSING) == 1
  while true do
    local slot, memory_gib = unpack(redis.call('ZRANGE', memory_key(pool), -1, -1, 'WITHSCORES'))
    if not slot then return nil end
    if may_be_missing or serves_large_pool(slot, pool, now) then return tonumber(memory_gib) end
    redis.call('ZREM', memory_key(pool), slot)
  end
end
