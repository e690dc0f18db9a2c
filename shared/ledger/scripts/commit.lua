-- End an item: compare-and-set on the fence. An acknowledged cancel always wins.
--
-- Arguments:
--   item_id, fence
--   outcome         'succeeded' | 'failed' | 'canceled'
--   own_json        what only this item's result contains; absent for a failure and a cancel
--   common_json     the rest of the result of a success, the error of a failure; absent for a cancel
--   gpu_ms          ms for which the attempt occupied its device; absent if only its renewals stated them
--   pixel_steps     width, height and steps of the item multiplied; absent if they are unknown
--   adapters        names of the item's adapters, as the rows of `usage` have them; absent if they are unknown
--   times           what the stages of a success took; absent if they are unknown. See shared/ledger/render_times.py:
--     model, row, swap_row, step_ns, denoise_us, store_us, swap_us (0 without an adapter swap)
--   usage_ttl_s     how long the usage of a day is kept
-- Keys: item, specs, results, result_parts, job, leases, busy, pace, times, done, outbox, usage, usage_tenants,
--   usage_totals, images, totals
-- Returns 'committed' | 'canceled' | 'repeated' (this same commit took effect before) | 'stale' (another claim owns it)
local now = now_ms()
local id, outcome = args.item_id, args.outcome
local key = item_key(id)
local state, fence, job, pool, tenant, started_ms = fields(key, 'state', 'fence', 'job', 'pool', 'tenant', 'started_ms')

-- A record that no longer exists has no fence, so its commit is stale too.
if tonumber(fence or 0) ~= args.fence then return 'stale' end
if state ~= 'running' then
  if state == outcome then return 'repeated' end
  if state == 'canceled' then return 'canceled' end
  return 'stale'
end

-- How many images weigh as much as a new one does alone, and rows that a model has at most.
local MEMORY, MOST_ROWS_OF_TIMES = 10, 300
-- One image may take a hundred times as long as others, because it waited for Redis or compiled its kernels.
local MOST_TIMES_MEAN = 3

-- Return a row with new values: the number of images, and the mean and the mean deviation of each value.
local function smooth(row, values)
  local numbers = {}
  for number in (row or '0'):gmatch('%d+') do numbers[#numbers + 1] = tonumber(number) end
  local count = math.min((numbers[1] or 0) + 1, MEMORY)
  numbers[1] = count
  for position, value in ipairs(values) do
    local mean, deviation = numbers[2 * position] or value, numbers[2 * position + 1] or 0
    if count > 1 then value = math.min(value, MOST_TIMES_MEAN * mean) end
    numbers[2 * position + 1] = deviation + (math.abs(value - mean) - deviation) / count
    numbers[2 * position] = mean + (value - mean) / count
  end
  for position, number in ipairs(numbers) do numbers[position] = string.format('%.0f', number) end
  return table.concat(numbers, ' ')
end

local function count_times(times, took_ms)
  local key = times_key(times.model)
  local row, swap_row = fields(key, times.row, times.swap_row)
  if not row and redis.call('HLEN', key) >= MOST_ROWS_OF_TIMES then return end
  local other_us = math.max(1000 * took_ms - times.denoise_us - times.store_us - times.swap_us, 0)
  redis.call('HSET', key, times.row, smooth(row, {times.step_ns, other_us, times.store_us}))
  if times.swap_us > 0 then redis.call('HSET', key, times.swap_row, smooth(swap_row, {times.swap_us})) end
end

if redis.call('HGET', job_key(job), 'cancel') == '1' then outcome = 'canceled' end
if outcome == 'succeeded' then
  store_outcome(id, 'result', args.own_json, args.common_json)
  local took_ms = now - tonumber(started_ms)
  -- Negative if the clock went back while the item ran.
  if took_ms >= 0 then
    local pace_ms = tonumber(redis.call('GET', pace_key(pool)) or took_ms)
    redis.call('SET', pace_key(pool), math.floor(0.8 * pace_ms + 0.2 * took_ms))
    if args.times then count_times(args.times, took_ms) end
  end
elseif outcome == 'failed' then
  store_outcome(id, 'error', '{}', args.common_json)
end
end_item(id, job, pool, tenant, outcome, now)
if outcome ~= args.outcome then return 'canceled' end
return 'committed'
