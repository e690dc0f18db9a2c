-- Add up the items that wait and run; changes nothing.
--
-- Arguments:
--   pools   all pools
--   tenant  absent for the items of all tenants
-- Keys: pending, shares, busy, leases, pace
-- Returns {queued items, running items, ms of each pool's pace}
local queued, running, paces_ms = 0, 0, {}
local shares = {}
for priority = 0, LAST_PRIORITY do shares[priority + 1] = priority .. '|' .. (args.tenant or '') end
for _, pool in ipairs(args.pools) do
  if args.tenant then
    for _, count in ipairs(redis.call('HMGET', shares_key(pool), unpack(shares))) do
      queued = queued + tonumber(count or 0)
    end
    running = running + tonumber(redis.call('HGET', busy_key(pool), args.tenant) or 0)
  else
    queued = queued + redis.call('ZCARD', pending_key(pool))
  end
  local pace_ms = redis.call('GET', pace_key(pool))
  if pace_ms then paces_ms[#paces_ms + 1] = tonumber(pace_ms) end
end
if not args.tenant then running = redis.call('ZCARD', LEASES) end
return {queued, running, paces_ms}
