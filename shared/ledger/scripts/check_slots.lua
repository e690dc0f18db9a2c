-- Correct what the indexes say about some slots, which processes of an earlier version may have added, changed or removed.
--
-- Arguments: slots, a list of names
-- Keys: slot, slots, slot_names, slot_kinds, kinds, unhealthy_slots, warm, next_adapters, warm_counts
for _, slot in ipairs(args.slots) do
  if redis.call('ZSCORE', SLOTS, slot) then
    redis.call('ZADD', SLOT_NAMES, 0, slot)
    record_kind(slot)
  else
    forget_slot(slot)
  end
end
