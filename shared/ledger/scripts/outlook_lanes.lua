-- Read some queued items of each lane, so far as a forecast needs them; changes nothing.
--
-- Arguments:
--   lanes  list of {pool, lane}
--   items  number of items of each lane that are looked at, evenly chosen from the oldest on
-- Keys: lane, item
-- Returns JSON: a list of {accept order, accepted ms, items for which it stands, shape} for each lane
local lanes = {}
for position, place in ipairs(args.lanes) do
  local key, items = lane_key(place[1], place[2]), {}
  for number, item in ipairs(read_spread(key, redis.call('ZCARD', key), args.items)) do
    local accepted_ms, shape = fields(item_key(item[1]), 'accepted_ms', 'shape')
    items[number] = {item[2], tonumber(accepted_ms or 0), item[3], shape or ''}
  end
  lanes[position] = items
end
return cjson.encode(lanes)
