-- Store jobs with their items and queue them: all of them or none, in one durable step.
--
-- Arguments:
--   jobs               list of jobs; each has:
--     id, pool, model, tenant
--     priority         0 (first) to 9
--     record           JSON text that the API reads back
--     items            list of {adapter_key, shape, spec = JSON text, absent in the compact form}; see
--                      shared/ledger/shape.py
--     specs            compact form: texts of the values that items share, and then of each item; see
--                      shared/ledger/spec_parts.py
--     idempotency_key  absent if the caller sent none
--     body_hash        identity of the request body, compared when the key is seen again
--     webhook_url      receives the message about the job's end; absent for none
--     webhook_states   states in which the job must end for that, with commas between them; absent for any
--     item_webhook_url, item_states
--                      the same for messages about items that end as succeeded or failed
--     key_id           absent if the caller has no API key
--     deadline_ms      time after the accept at which queued items are canceled; absent for none
--     adapters         names of the adapters of the first item, as the rows of `usage` have them
--     pixel_steps      the sum of width, height and steps multiplied, over the items
--     trace            W3C's traceparent of the submit; absent if it is not traced
--   key                {id, queued_items, items_per_day, pixel_steps_per_day}: the limits of the caller's key; absent if
--                      it has none, and each limit that it has not
--   sweep              the sweep of which these are all jobs; absent without one:
--     id, tenant, model, idempotency_key, body_hash as in a job
--     record           JSON text that the API reads back
--     jobs             JSON list of the ids of its jobs
--   cap                queued items that one pool may have
--   compact_from_ms    time from which jobs are stored in the compact form
--   idempotency_ttl_s  how long a key is remembered
-- Keys: compact_from, sweep, sweeps, tenant_sweeps, job, item, specs, idem, jobs, tenant_jobs, tenants_until, seq, pending, shares, lanes, lane, deadlines, key_day, key_jobs, key_load
-- Returns {'stored', {'accepted' | 'repeat', id, accepted ms, record} for each job}, or, with nothing stored,
--   {'conflict', idempotency key seen with another body} | {'repeat', id, accepted ms, jobs and record of the sweep that was accepted before} | {'full', queued items of the pool without room,
--   items that the call asks of it, pool}; a pool that can never have room for them comes first
--   | {'limit', name of a limit of the key, used, asked, ms until the day ends}
local now = now_ms()

-- Jobs and keys that this call will store: a second job of the call with the same id or key cannot find them in Redis.
local planned_ids, planned_keys = {}, {}

local function exists(id)
  return planned_ids[id] or redis.call('EXISTS', job_key(id), sweep_key(id)) > 0
end

-- Return how a job, or a sweep, is already stored: 'accepted' (this same call, sent twice), 'repeat' or 'conflict', and its id.
local function look_up(job)
  if job.idempotency_key then
    local key = idempotency_key(job.tenant, job.idempotency_key)
    local seen = planned_keys[key] or redis.call('GET', key)
    if seen then
      local hash, id = seen:match('^(%S+) (%S+)$')
      if hash ~= job.body_hash then return 'conflict', id end
      -- The job's own id: the client sent this accept twice because the first reply was lost.
      if id == job.id then return 'accepted', id end
      -- A process of an earlier version may have forgotten the job; the key then stands for a new one.
      if exists(id) then return 'repeat', id end
    end
  end
  if exists(job.id) then return 'accepted', job.id end
end

local function plan(job)
  planned_ids[job.id] = true
  if job.idempotency_key then
    planned_keys[idempotency_key(job.tenant, job.idempotency_key)] = job.body_hash .. ' ' .. job.id
  end
end

-- Store one item; return its lane.
local function store_item(job, index, item, order)
  local id = job.id .. ':' .. index
  -- Short in the compact form only: workers of an earlier version look for their adapters by the whole key.
  local adapters = item.spec and item.adapter_key or short_adapters(item.adapter_key)
  local lane = job.priority .. '|' .. job.tenant .. '|' .. adapters
  redis.call('HSET', item_key(id), 'job', job.id, 'index', index, 'pool', job.pool, 'tenant', job.tenant,
    'lane', lane, 'seq', order, 'state', 'queued', 'fence', 0, 'attempt', 0, 'commits', 0,
    'accepted_ms', now, 'queued_ms', now, 'shape', item.shape)
  if item.spec then redis.call('HSET', item_key(id), 'spec', item.spec) end
  return lane
end

-- Store the items of a job, and queue those of each lane together: Redis serves nobody else meanwhile, and a sweep has
-- thousands.
local function store_items(job)
  -- GET and SET instead of INCRBY, which access lists that operators wrote for earlier versions do not allow.
  local before = tonumber(redis.call('GET', SEQUENCE) or 0)
  redis.call('SET', SEQUENCE, before + #job.items)
  local lanes, entries = {}, {}
  for position, item in ipairs(job.items) do
    local order = before + position
    local lane = store_item(job, position - 1, item, order)
    if not entries[lane] then
      lanes[#lanes + 1] = lane
      entries[lane] = {}
    end
    local own = entries[lane]
    own[#own + 1] = order
    own[#own + 1] = job.id .. ':' .. (position - 1)
  end
  for _, lane in ipairs(lanes) do enqueue_all(entries[lane], job.pool, lane) end
end

local function store(job)
  store_items(job)
  local specs = job.specs or {}
  for first = 1, #specs, ENTRIES_AT_ONCE do
    redis.call('RPUSH', specs_key(job.id), unpack(specs, first, math.min(first + ENTRIES_AT_ONCE - 1, #specs)))
  end
  local key = job_key(job.id)
  redis.call('HSET', key, 'state', 'queued', 'cancel', 0, 'model', job.model, 'pool', job.pool,
    'tenant', job.tenant, 'priority', job.priority, 'record', job.record, 'items', #job.items, 'adapters', job.adapters,
    'queued', #job.items, 'running', 0, 'succeeded', 0, 'failed', 0, 'canceled', 0, 'accepted_ms', now)
  local order = redis.call('GET', SEQUENCE)
  redis.call('ZADD', JOBS, order, job.id)
  redis.call('ZADD', tenant_jobs_key(job.tenant), order, job.id)
  if job.key_id then redis.call('HSET', key, 'key', job.key_id) end
  if job.trace then redis.call('HSET', key, 'trace', job.trace) end
  if job.webhook_url then redis.call('HSET', key, 'webhook', job.webhook_url, 'webhook_state', 'waiting') end
  if job.webhook_states then redis.call('HSET', key, 'webhook_states', job.webhook_states) end
  -- Apart from `webhook`, for which a process of an earlier version would send the message about the job's end.
  if job.item_webhook_url then
    redis.call('HSET', key, 'item_webhook', job.item_webhook_url, 'item_states', job.item_states)
  end
  if job.deadline_ms then
    redis.call('HSET', key, 'deadline_ms', now + job.deadline_ms)
    redis.call('ZADD', DEADLINES, now + job.deadline_ms, job.id)
  end
  if job.idempotency_key then
    redis.call('SET', idempotency_key(job.tenant, job.idempotency_key), job.body_hash .. ' ' .. job.id,
      'EX', args.idempotency_ttl_s)
    -- The job is kept for as long as the key is remembered, whatever retention the process has that forgets it.
    redis.call('HSET', key, 'key_until_ms', now + 1000 * args.idempotency_ttl_s)
  end
end

local function store_sweep(sweep)
  local key, order = sweep_key(sweep.id), redis.call('GET', SEQUENCE)
  redis.call('HSET', key, 'tenant', sweep.tenant, 'model', sweep.model, 'record', sweep.record, 'jobs', sweep.jobs,
    'accepted_ms', now)
  redis.call('ZADD', SWEEPS, order, sweep.id)
  redis.call('ZADD', tenant_sweeps_key(sweep.tenant), order, sweep.id)
  for _, job in ipairs(args.jobs) do redis.call('HSET', job_key(job.id), 'sweep', sweep.id) end
  if sweep.idempotency_key then
    redis.call('SET', idempotency_key(sweep.tenant, sweep.idempotency_key), sweep.body_hash .. ' ' .. sweep.id,
      'EX', args.idempotency_ttl_s)
    redis.call('HSET', key, 'key_until_ms', now + 1000 * args.idempotency_ttl_s)
  end
end

-- Nothing is written before every job has been checked: a script that ends early does not undo its writes.
if args.sweep then
  local outcome, id = look_up(args.sweep)
  if outcome == 'conflict' then return {'conflict', args.sweep.idempotency_key} end
  if outcome == 'repeat' then return {'repeat', id, fields(sweep_key(id), 'accepted_ms', 'jobs', 'record')} end
end
local answers, new_jobs, needed = {}, {}, {}
for position, job in ipairs(args.jobs) do
  local outcome, id = look_up(job)
  if outcome == 'conflict' then return {'conflict', job.idempotency_key} end
  if not outcome then
    outcome, id = 'accepted', job.id
    plan(job)
    new_jobs[#new_jobs + 1] = job
    needed[job.pool] = (needed[job.pool] or 0) + #job.items
  end
  answers[position] = {outcome, id}
end
local full
for pool, count in pairs(needed) do
  local queued = redis.call('ZCARD', pending_key(pool))
  if queued + count > args.cap and not (full and full[3] > args.cap) then full = {'full', queued, count, pool} end
end
if full then return full end

local new_items, new_pixel_steps = 0, 0
for _, job in ipairs(new_jobs) do
  new_items, new_pixel_steps = new_items + #job.items, new_pixel_steps + job.pixel_steps
end
if args.key and new_items > 0 then
  local exceeded = exceeded_limit(args.key, new_items, new_pixel_steps, now)
  if exceeded then return {'limit', unpack(exceeded)} end
  count_use(args.key, new_jobs, new_items, new_pixel_steps, now)
end

redis.call('SET', COMPACT_FROM, args.compact_from_ms, 'NX')
-- Before the new jobs, which are in both indexes.
local were_indexed = #new_jobs > 0 and are_tenants_indexed()
for _, job in ipairs(new_jobs) do store(job) end
if args.sweep and #new_jobs > 0 then store_sweep(args.sweep) end
if were_indexed then redis.call('SET', TENANTS_UNTIL, redis.call('GET', SEQUENCE)) end

local reply = {'stored'}
for _, answer in ipairs(answers) do
  local outcome, id = unpack(answer)
  local accepted_ms, record = fields(job_key(id), 'accepted_ms', 'record')
  reply[#reply + 1] = {outcome, id, accepted_ms, record}
end
return reply
