-- Store one heartbeat of a slot.
--
-- Arguments:
--   slot
--   report       the fields of the report, all texts
--   slot_ttl_ms  the slot counts as dead after this time without another heartbeat
-- Keys: slot, slots, slots_missing, warm, warm_counts
local now = now_ms()

-- No heartbeat of any slot came for long: Redis stalled, or its clock was set. Slots that live may look dead until each
-- has sent its next heartbeat.
local newest_ms = redis.call('ZRANGE', SLOTS, -1, -1, 'WITHSCORES')[2]
if newest_ms and math.abs(now - newest_ms) > args.slot_ttl_ms / 2 then
  redis.call('SET', SLOTS_MISSING, 1, 'PX', args.slot_ttl_ms)
end

for field, value in pairs(args.report) do redis.call('HSET', slot_key(args.slot), field, value) end
redis.call('PEXPIRE', slot_key(args.slot), args.slot_ttl_ms)
redis.call('ZADD', SLOTS, now, args.slot)
set_warm(args.slot, args.report.warm)
forget_dead_slots(now, args.slot_ttl_ms)
