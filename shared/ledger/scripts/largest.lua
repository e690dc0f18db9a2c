-- Return the memory, in GiB, of the largest live slot that serves a pool of large items; nil if no live slot does.
--
-- Arguments:
--   pool
--   slot_ttl_ms  a slot whose last heartbeat is older counts as dead
-- Keys: slots, slot, slot_names, slots_missing, slot_kinds, kinds, unhealthy_slots, memory, warm, next_adapters,
--   warm_counts
return largest_memory(args.pool, now_ms())
