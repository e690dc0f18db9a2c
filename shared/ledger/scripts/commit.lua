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
--   usage_ttl_s     how long the usage of a day is kept
-- Keys: item, specs, results, result_parts, job, leases, busy, pace, done, outbox, usage, usage_tenants, usage_totals,
--   images, totals
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

if redis.call('HGET', job_key(job), 'cancel') == '1' then outcome = 'canceled' end
if outcome == 'succeeded' then
  store_outcome(id, 'result', args.own_json, args.common_json)
  local took_ms = now - tonumber(started_ms)
  -- Negative if the clock went back while the item ran.
  if took_ms >= 0 then
    local pace_ms = tonumber(redis.call('GET', pace_key(pool)) or took_ms)
    redis.call('SET', pace_key(pool), math.floor(0.8 * pace_ms + 0.2 * took_ms))
  end
elseif outcome == 'failed' then
  store_outcome(id, 'error', '{}', args.common_json)
end
end_item(id, job, pool, tenant, outcome, now)
if outcome ~= args.outcome then return 'canceled' end
return 'committed'
