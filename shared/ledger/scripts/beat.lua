-- Store one heartbeat of a slot.
--
-- Arguments:
--   slot
--   report       the fields of the report, all texts
--   slot_ttl_ms  the slot counts as dead after this time without another heartbeat
-- Keys: slot, slots, slots_missing, warm, warm_counts
local now = now_ms()

-- Before this heartbeat counts as the newest.
forget_dead_slots(now, args.slot_ttl_ms)
for field, value in pairs(args.report) do redis.call('HSET', slot_key(args.slot), field, value) end
redis.call('PEXPIRE', slot_key(args.slot), args.slot_ttl_ms)
redis.call('ZADD', SLOTS, now, args.slot)
set_warm(args.slot, args.report.warm)
