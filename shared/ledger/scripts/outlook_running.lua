-- Read some running items of some pools, so far as a forecast needs them; changes nothing.
--
-- Arguments:
--   pools  the pools that the slots of a model serve
--   items  number of running items of all models that are looked at
-- Keys: leases, item, next_adapters
-- Returns JSON: a list of {started ms, share, pool, adapters, adapters that the slot prepares, shape}
local wanted, running, slots = {}, {}, {}
for _, pool in ipairs(args.pools) do wanted[pool] = true end
for _, id in ipairs(redis.call('ZRANDMEMBER', LEASES, args.items)) do
  local started_ms, pool, lane, shape, slot = fields(item_key(id), 'started_ms', 'pool', 'lane', 'shape', 'slot')
  if wanted[pool] and started_ms and lane and slot then
    local adapters = short_adapters(adapters_of(lane))
    running[#running + 1] = {tonumber(started_ms), share_of(lane), pool, adapters, adapters, shape or ''}
    slots[#slots + 1] = slot
  end
end
if #slots > 0 then
  for position, adapters in ipairs(redis.call('HMGET', NEXT_ADAPTERS, unpack(slots))) do
    if adapters then running[position][5] = adapters end
  end
end
return cjson.encode(running)
