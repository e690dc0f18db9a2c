-- Hand a running item back to the queue, or end it when its job is canceled or it has no attempts left.
--
-- Arguments:
--   item_id, fence
--   reason         'drain' and 'outage' (of the storage) do not count the attempt; any other reason does. 'memory': the
--                  item did not fit on the device. 'later': only time helps, so the item goes to the end of the queue
--   max_attempts   claims after which an item fails
--   error_json     the error of an item that fails
--   large_pool     with 'memory': the pool in which the item waits for a device with more memory
--   memory_gib     with 'memory': memory of the device
--   too_large_json with 'memory': the error of an item for which no live slot has more memory
--   slot_ttl_ms    with 'memory': a slot whose last heartbeat is older counts as dead
--   gpu_ms         ms for which the attempt occupied its device; absent if only its renewals stated them
--   usage_ttl_s    how long the usage of a day is kept
-- Keys: totals, item, seq, and those of requeue_or_end; with 'memory' also those of largest.lua
-- Returns 'queued' | 'failed' | 'canceled' | 'stale' (another claim owns it)
local now = now_ms()
local id = args.item_id
if not is_owned(id, args.fence) then return 'stale' end
redis.call('HINCRBY', TOTALS, 'releases_' .. args.reason, 1)
if args.reason == 'drain' or args.reason == 'outage' then
  redis.call('HINCRBY', item_key(id), 'attempt', -1)
end
if args.reason == 'later' then redis.call('HSET', item_key(id), 'seq', redis.call('INCR', SEQUENCE)) end
if args.reason == 'memory' and (largest_memory(args.large_pool, now) or 0) <= args.memory_gib then
  -- No attempt is left that could help.
  local state = requeue_or_end(id, now, 0, args.too_large_json)
  return state
end
local state = requeue_or_end(id, now, args.max_attempts, args.error_json, args.large_pool)
return state
