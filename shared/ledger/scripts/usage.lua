-- What the attempts at items used, by day, tenant, API key, model and adapters; part of every script.
--
-- It is counted in the step that ends an attempt, so it is neither lost nor counted twice. `usage:{day}:{tenant}` has a
-- field `{key}|{model}|{adapters}` for each row, and `usage_totals` a field `{tenant}|{model}`. A value is four decimal
-- numbers: images, pixel-steps, ms of devices for images, ms of devices for attempts that ended without an image. A
-- number that a later version adds behind them stays as it is.
local DAY_MS = 86400000
-- A row takes about 150 bytes. Beyond this number, a new combination of adapters counts in the row `other` of its key and
-- model; and beyond the second number, a new key and model in one row for all of them.
local MOST_ROWS, MOST_OTHER_ROWS = 1000, 2000
local MOST_TOTALS = 1000
local OTHER = 'other'

local function day_of(now) return string.format('%.0f', math.floor(now / DAY_MS)) end

-- Return the first of the rows that exists, or that may be added to the hash; the last one may always be added.
-- `most` has the number of rows up to which each of the others is added.
local function find_row(key, rows, most)
  for position, limit in ipairs(most) do
    local before = redis.call('HGET', key, rows[position])
    if before or redis.call('HLEN', key) < limit then return rows[position], before end
  end
  return rows[#rows], redis.call('HGET', key, rows[#rows])
end

-- Add numbers to a row; return whether it is new.
local function add_to_row(key, row, before, added)
  local sums = {}
  for number in (before or ''):gmatch('%d+') do sums[#sums + 1] = tonumber(number) end
  for position, number in ipairs(added) do sums[position] = (sums[position] or 0) + number end
  for position, number in ipairs(sums) do sums[position] = string.format('%.0f', number) end
  return redis.call('HSET', key, row, table.concat(sums, ' ')) == 1
end

-- Images finished in each period of 10 s, by tenant and of all ('*'), from which the rate of the last minute comes.
local IMAGES_PERIOD_MS, IMAGES_TTL_S = 10000, 120

local function count_image(tenant, now)
  local key = images_key(string.format('%.0f', math.floor(now / IMAGES_PERIOD_MS)))
  redis.call('HINCRBY', key, tenant, 1)
  if redis.call('HINCRBY', key, '*', 1) == 1 then redis.call('EXPIRE', key, IMAGES_TTL_S) end
end

-- Count an attempt that ends now, before its item changes. The worker states its time on the device, at the end or with
-- a renewal; one of an earlier version does not.
local function count_attempt(id, job, tenant, has_image, now)
  local ms = tonumber(args.gpu_ms or redis.call('HGET', item_key(id), 'gpu_ms') or 0)
  if not has_image and ms == 0 then return end
  if has_image then count_image(tenant, now) end
  local added = has_image and {1, args.pixel_steps or 0, ms, 0} or {0, 0, 0, ms}
  local key_id, model, adapters = fields(job_key(job), 'key', 'model', 'adapters')
  model = model or OTHER
  local owner, rest = key_id or '', model .. '|' .. (args.adapters or adapters or OTHER)
  local day = day_of(now)
  local key = usage_key(day, tenant)
  local row, before = find_row(
    key, {owner .. '|' .. rest, owner .. '|' .. model .. '|' .. OTHER, OTHER .. '|' .. OTHER .. '|' .. OTHER},
    {MOST_ROWS, MOST_OTHER_ROWS})
  if add_to_row(key, row, before, added) then
    redis.call('SADD', usage_tenants_key(day), tenant)
    redis.call('EXPIRE', key, args.usage_ttl_s)
    redis.call('EXPIRE', usage_tenants_key(day), args.usage_ttl_s)
  end
  local total, sums = find_row(USAGE_TOTALS, {tenant .. '|' .. model, OTHER .. '|' .. model}, {MOST_TOTALS})
  add_to_row(USAGE_TOTALS, total, sums, added)
end
