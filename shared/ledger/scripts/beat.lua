-- Store one heartbeat of a slot.
--
-- Arguments:
--   slot
--   report       the fields of the report, all texts
--   slot_ttl_ms  the slot counts as dead after this time without another heartbeat
--   large_pools  pools of large items that the slot serves if it has the most memory
--   memory_gib   memory of its device
--   batch        what its process counted; see metrics.lua. Absent if it counted nothing
-- Keys: metrics, batch, slot, slots, slot_names, slots_missing, warm, next_adapters, warm_counts, memory
local now = now_ms()

-- Before this heartbeat counts as the newest.
forget_dead_slots(now, args.slot_ttl_ms)
for field, value in pairs(args.report) do redis.call('HSET', slot_key(args.slot), field, value) end
record_memory(args.slot, args.large_pools, args.memory_gib, now)
redis.call('PEXPIRE', slot_key(args.slot), args.slot_ttl_ms)
redis.call('ZADD', SLOTS, now, args.slot)
redis.call('ZADD', SLOT_NAMES, 0, args.slot)
set_adapters(WARM, args.slot, args.report.warm)
if args.batch then add_metrics(args.slot, args.batch) end

-- One random entry for each heartbeat, so that slots that are gone do not fill the indexes.
local listed = redis.call('ZRANDMEMBER', SLOT_NAMES)
if not redis.call('ZSCORE', SLOTS, listed) then redis.call('ZREM', SLOT_NAMES, listed) end
for _, pool in ipairs(args.large_pools) do
  local other = redis.call('ZRANDMEMBER', memory_key(pool))
  if not redis.call('ZSCORE', SLOTS, other) and redis.call('EXISTS', SLOTS_MISSING) == 0 then
    redis.call('ZREM', memory_key(pool), other)
  end
end
