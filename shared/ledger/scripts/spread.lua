-- Looking at a part of a sorted set; part of the scripts that a forecast runs.

-- Return some members, evenly spaced from the first: each with its score, and for how many it stands.
local function read_spread(key, count, most)
  local spread = {}
  local function add(flat, stands_for)
    for position = 1, #flat, 2 do spread[#spread + 1] = {flat[position], tonumber(flat[position + 1]), stands_for} end
  end
  if count <= most then
    add(redis.call('ZRANGE', key, 0, -1, 'WITHSCORES'), 1)
    return spread
  end
  for number = 0, most - 1 do
    local rank, next_rank = math.floor(number * count / most), math.floor((number + 1) * count / most)
    add(redis.call('ZRANGE', key, rank, rank, 'WITHSCORES'), next_rank - rank)
  end
  return spread
end

