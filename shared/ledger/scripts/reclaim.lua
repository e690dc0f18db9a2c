-- Requeue or end the items that an earlier process of a slot was running, without waiting for their leases.
--
-- Arguments:
--   slot
--   boot          identity of the slot's new process
--   max_attempts  claims after which an item fails
--   error_json    the error of an item that fails: its workers were lost
-- Keys: leases, and those of requeue_or_end
-- Returns the number of items requeued
local now = now_ms()
local requeued = 0
for _, id in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
  local slot, boot = fields(item_key(id), 'slot', 'boot')
  if slot == args.slot and boot ~= args.boot then
    local state = requeue_or_end(id, now, args.max_attempts, args.error_json)
    if state == 'queued' then requeued = requeued + 1 end
  end
end
return requeued
