-- Remove a slot that stops from the live ones, before its last heartbeat expires.
--
-- Arguments: slot
-- Keys: slot, slots, warm, warm_counts
redis.call('DEL', slot_key(args.slot))
redis.call('ZREM', SLOTS, args.slot)
set_warm(args.slot, nil)
