-- Store one heartbeat of a slot.
--
-- Arguments:
--   slot
--   report       the fields of the report, all texts
--   slot_ttl_ms  the slot counts as dead after this time without another heartbeat
--   large_pools  pools of large items that the slot serves if it has the most memory
--   memory_gib   memory of its device
--   batch        what its process counted; see metrics.lua. Absent if it counted nothing
-- Keys: metrics, batch, slot, slots, slot_names, slots_missing, slot_kinds, kinds, unhealthy_slots, warm, next_adapters,
--   warm_counts, memory
-- Returns the number of slots
local now = now_ms()

-- In one of 50 scripts Redis has Lua collect garbage, which doubled the time of that script: the 99th percentile of claims.
-- With this value, such a step does an eighth of the work that it does with Lua's default (200), and scripts collect the
-- rest while they allocate; Lua takes 0.7 MB instead of 0.4.
-- Here, because Redis forgets it when it restarts. Without the function, nothing is set.
pcall(function() collectgarbage('setstepmul', 25) end)

-- Write the fields that changed: most heartbeats repeat the last one, and each write goes to the disk.
local function store_report(key, report)
  local names, changed = {}, {}
  for field in pairs(report) do names[#names + 1] = field end
  for position, stored in ipairs(redis.call('HMGET', key, unpack(names))) do
    local field = names[position]
    if stored ~= report[field] then changed[#changed + 1], changed[#changed + 2] = field, report[field] end
  end
  if #changed > 0 then redis.call('HSET', key, unpack(changed)) end
end

-- Before this heartbeat counts as the newest.
forget_dead_slots(now, args.slot_ttl_ms)
store_report(slot_key(args.slot), args.report)
record_memory(args.slot, args.large_pools, args.memory_gib, now)
redis.call('PEXPIRE', slot_key(args.slot), args.slot_ttl_ms)
redis.call('ZADD', SLOTS, now, args.slot)
redis.call('ZADD', SLOT_NAMES, 0, args.slot)
set_adapters(WARM, args.slot, args.report.warm)
record_kind(args.slot)
if args.batch then add_metrics(args.slot, args.batch) end

-- One random entry of each index for each heartbeat, so that slots that are gone do not fill them, and those of an earlier
-- version do not stay as they were. The pools of large items take turns.
local listed = redis.call('ZRANDMEMBER', SLOT_NAMES)
if redis.call('ZSCORE', SLOTS, listed) then record_kind(listed) else forget_slot(listed) end
if #args.large_pools > 0 then
  local key = memory_key(args.large_pools[now % #args.large_pools + 1])
  local other = redis.call('ZRANDMEMBER', key)
  if not redis.call('ZSCORE', SLOTS, other) and redis.call('EXISTS', SLOTS_MISSING) == 0 then
    redis.call('ZREM', key, other)
  end
end
return redis.call('ZCARD', SLOTS)
