-- Remove a slot that stops from the live ones, before its last heartbeat expires.
--
-- Arguments: slot
-- Keys: slot, slots, slot_names, warm, next_adapters, warm_counts
redis.call('DEL', slot_key(args.slot))
forget_slot(args.slot)
