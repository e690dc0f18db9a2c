-- Requeue or end the items that an earlier process of a slot was running, without waiting for their leases.
--
-- Arguments:
--   slot
--   boot          identity of the slot's new process
--   candidates    items that may be the slot's although `claims` does not list them
--   max_attempts  claims after which an item fails
--   error_json    the error of an item that fails: its workers were lost
--   usage_ttl_s   how long the usage of a day is kept
-- Keys: totals, claims, and those of requeue_or_end
-- Returns the number of items requeued
local now = now_ms()
local requeued = 0
local function reclaim(id)
  local state, slot, boot = fields(item_key(id), 'state', 'slot', 'boot')
  if state ~= 'running' or slot ~= args.slot or boot == args.boot then return end
  redis.call('HINCRBY', TOTALS, 'leases_reclaimed', 1)
  if requeue_or_end(id, now, args.max_attempts, args.error_json) == 'queued' then requeued = requeued + 1 end
end

for _, field in ipairs(redis.call('HKEYS', claims_key(args.slot))) do
  -- Only the ids of items contain a colon.
  if field:find(':', 1, true) then reclaim(field) end
end
for _, id in ipairs(args.candidates) do reclaim(id) end
return requeued
