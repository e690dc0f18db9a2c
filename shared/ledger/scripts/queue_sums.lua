-- Add up the items that wait and run, of all tenants and of some; changes nothing.
--
-- Arguments:
--   pools           all pools
--   tenants         list of tenants
--   periods         numbers of the periods of 10 s of which finished images are counted
-- Keys: pending, shares, busy, leases, pace, images
-- Returns {ms of each pool's pace, sums of all tenants, sums of each tenant}; sums: {queued items, running items, images}
local shown, running = {}, redis.call('ZCARD', LEASES)
local queued, paces_ms = 0, {}
for _, pool in ipairs(args.pools) do
  local length = redis.call('ZCARD', pending_key(pool))
  queued = queued + length
  if length > 0 or redis.call('HLEN', busy_key(pool)) > 0 then shown[#shown + 1] = pool end
  local pace_ms = redis.call('GET', pace_key(pool))
  if pace_ms then paces_ms[#paces_ms + 1] = tonumber(pace_ms) end
end

local function count_images(field)
  local images = 0
  for _, period in ipairs(args.periods) do
    images = images + tonumber(redis.call('HGET', images_key(period), field) or 0)
  end
  return images
end

local function sums_of(tenant)
  local shares, waiting, busy = {}, 0, 0
  for priority = 0, LAST_PRIORITY do shares[priority + 1] = priority .. '|' .. tenant end
  for _, pool in ipairs(shown) do
    for _, count in ipairs(redis.call('HMGET', shares_key(pool), unpack(shares))) do
      waiting = waiting + tonumber(count or 0)
    end
    busy = busy + tonumber(redis.call('HGET', busy_key(pool), tenant) or 0)
  end
  return {waiting, busy, count_images(tenant)}
end

local sums = {}
for position, tenant in ipairs(args.tenants) do sums[position] = sums_of(tenant) end
return {paces_ms, {queued, running, count_images('*')}, sums}
