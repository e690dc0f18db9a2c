-- Store a job with its items and queue them, in one durable step.
-- ARGV: 2 job id, 3 pool, 4 tenant, 5 priority 0..9, 6 job record JSON, 7 idempotency key or '', 8 body hash,
--       9 idempotency ttl s, 10 cap of queued items, 11 JSON list of {spec, adapter_key}, 12 model,
--       13 URL to be told of the job's end or ''
-- Returns {'accepted'|'repeat', id, accepted ms, job record JSON} | {'conflict', id} | {'full', queued}
local now = now_ms()
local job, pool, tenant, priority = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local items = cjson.decode(ARGV[11])

local function answer(outcome, id)
  local f = fields(job_key(id), 'accepted_ms', 'record')
  return {outcome, id, f[1], f[2]}
end

local idem = P .. 'idem:' .. tenant .. ':' .. ARGV[7]
if ARGV[7] ~= '' then
  local seen = redis.call('GET', idem)
  if seen then
    local hash, id = seen:match('^(%S+) (%S+)$')
    if hash ~= ARGV[8] then return {'conflict', id} end
    -- Our own id: the client sent this accept twice because the first reply was lost.
    if id == job then return answer('accepted', id) end
    if redis.call('EXISTS', job_key(id)) == 1 then return answer('repeat', id) end
  end
end
if redis.call('EXISTS', job_key(job)) == 1 then return answer('accepted', job) end

local queued = redis.call('ZCARD', P .. 'pending:' .. pool)
if queued + #items > tonumber(ARGV[10]) then return {'full', tostring(queued)} end

for index, item in ipairs(items) do
  local id = job .. ':' .. (index - 1)
  local seq = redis.call('INCR', P .. 'seq')
  local lane = priority .. '|' .. tenant .. '|' .. item.adapter_key
  redis.call('HSET', item_key(id), 'job', job, 'index', index - 1, 'pool', pool, 'tenant', tenant, 'lane', lane,
    'seq', seq, 'state', 'queued', 'fence', 0, 'attempt', 0, 'commits', 0, 'accepted_ms', now, 'queued_ms', now, 'spec', item.spec)
  enqueue(id, pool, lane, seq)
end
redis.call('HSET', job_key(job), 'state', 'queued', 'cancel', 0, 'model', ARGV[12], 'pool', pool, 'tenant', tenant,
  'priority', priority, 'record', ARGV[6], 'items', #items, 'queued', #items, 'running', 0, 'succeeded', 0,
  'failed', 0, 'canceled', 0, 'accepted_ms', now)
redis.call('ZADD', P .. 'jobs', redis.call('GET', P .. 'seq'), job)
if ARGV[13] ~= '' then redis.call('HSET', job_key(job), 'webhook', ARGV[13], 'webhook_state', 'waiting') end
if ARGV[7] ~= '' then redis.call('SET', idem, ARGV[8] .. ' ' .. job, 'EX', ARGV[9]) end
return answer('accepted', job)
