-- End an item: compare-and-set on the fence. An acknowledged cancel always wins.
-- ARGV: 2 item id, 3 fence, 4 outcome 'succeeded'|'failed'|'canceled', 5 result or error JSON
-- Returns 'committed' | 'canceled' | 'repeated' (the same commit, its reply was lost) | 'stale'
local now = now_ms()
local id, fence, outcome = ARGV[2], ARGV[3], ARGV[4]
local key = item_key(id)
local f = fields(key, 'state', 'fence', 'job', 'pool', 'tenant', 'started_ms')
if f[2] ~= fence then return 'stale' end
if f[1] ~= 'running' then
  if f[1] == outcome then return 'repeated' end
  if f[1] == 'canceled' then return 'canceled' end
  return 'stale'
end
if redis.call('HGET', job_key(f[3]), 'cancel') == '1' then outcome = 'canceled' end
if outcome == 'succeeded' then
  redis.call('HSET', key, 'result', ARGV[5])
  local took = now - tonumber(f[6])
  local pace = tonumber(redis.call('GET', P .. 'pace:' .. f[4]) or took)
  redis.call('SET', P .. 'pace:' .. f[4], math.floor(0.8 * pace + 0.2 * took))
elseif outcome == 'failed' then
  redis.call('HSET', key, 'error', ARGV[5])
end
end_item(id, f[3], f[4], f[5], outcome, now)
if outcome ~= ARGV[4] then return 'canceled' end
return 'committed'
