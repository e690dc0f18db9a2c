-- Remove a slot that stops from the live ones, before its last heartbeat expires.
--
-- Arguments:
--   slot
--   batch  what its process counted last, as in beat.lua
-- Keys: metrics, batch, slot, slots, slot_names, slot_kinds, kinds, unhealthy_slots, warm, next_adapters, warm_counts
redis.call('DEL', slot_key(args.slot))
forget_slot(args.slot)
if args.batch then add_metrics(args.slot, args.batch) end
