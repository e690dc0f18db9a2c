-- Hand a running item back to the queue, or end it when its job is canceled or it has no attempts left.
--
-- Arguments:
--   item_id, fence
--   reason        'drain' and 'outage' (of the storage) do not count the attempt; any other reason does
--   max_attempts  claims after which an item fails
--   error_json    the error of an item that fails
-- Keys: item, and those of requeue_or_end
-- Returns 'queued' | 'failed' | 'canceled' | 'stale' (another claim owns it)
local now = now_ms()
local id = args.item_id
if not is_owned(id, args.fence) then return 'stale' end
if args.reason == 'drain' or args.reason == 'outage' then
  redis.call('HINCRBY', item_key(id), 'attempt', -1)
end
local state = requeue_or_end(id, now, args.max_attempts, args.error_json)
return state
