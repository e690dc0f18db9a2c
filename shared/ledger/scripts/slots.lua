-- Which slots are alive and what they have merged; part of the scripts that read or change it.

-- Record the adapter key that a slot has merged, or none (nil): by its name in a lane. WARM_COUNTS is the number of
-- slots in WARM by that name.
local function set_warm(slot, adapter_key)
  adapter_key = adapter_key and short_adapters(adapter_key)
  local before = redis.call('HGET', WARM, slot)
  if before == (adapter_key or false) then return end
  if before and redis.call('HINCRBY', WARM_COUNTS, before, -1) <= 0 then redis.call('HDEL', WARM_COUNTS, before) end
  if adapter_key then
    redis.call('HSET', WARM, slot, adapter_key)
    redis.call('HINCRBY', WARM_COUNTS, adapter_key, 1)
  else
    redis.call('HDEL', WARM, slot)
  end
end

-- Slots forgotten in one step; the next step forgets the rest.
local DEAD_AT_ONCE = 20

local function forget_slots(since, until_ms)
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', SLOTS, since, until_ms, 'LIMIT', 0, DEAD_AT_ONCE)) do
    redis.call('ZREM', SLOTS, slot)
    set_warm(slot, nil)
  end
end

-- Forget the slots whose heartbeat is too old, and those that died before the clock went back.
local function forget_dead_slots(now, slot_ttl_ms)
  -- No heartbeat of any slot came for long: Redis stalled, or its clock was set. Slots that live may look dead until each
  -- has sent its next heartbeat. Recorded here, because the slots that prove it are about to be forgotten.
  local newest_ms = redis.call('ZRANGE', SLOTS, -1, -1, 'WITHSCORES')[2]
  if newest_ms and math.abs(now - newest_ms) > slot_ttl_ms / 2 then
    redis.call('SET', SLOTS_MISSING, 1, 'PX', slot_ttl_ms)
  end
  forget_slots('-inf', string.format('(%.0f', now - slot_ttl_ms))
  forget_slots(string.format('(%.0f', now + slot_ttl_ms), '+inf')
end

