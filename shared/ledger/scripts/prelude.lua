-- The start of every script: arguments, clock, key names, and the moves that several scripts share.
--
-- A script gets its arguments as one JSON object in ARGV[1]. An argument that is not set is absent, never null: cjson
-- decodes null to a light userdata, which Lua takes for true. Numbers decode to doubles, so only counts, fences and
-- times in ms travel as numbers. Item specs, records and results travel as JSON text inside a JSON string and are
-- stored byte for byte: decoding them here would round a seed above 2^53 and rewrite floats.
--
-- Keys are built here instead of being declared in KEYS: most are known only after a read. Redis Cluster is therefore
-- not supported. docs/reference/ledger.md lists all keys.
--
-- A `nil` reply of Redis is `false` in Lua. Numbers that Lua hands to Redis are whole, so they are stored without a
-- fraction or an exponent.
local args = cjson.decode(ARGV[1])

local PREFIX = 'flux2:'
local JOBS = PREFIX .. 'jobs'
local SEQUENCE = PREFIX .. 'seq'
local LEASES = PREFIX .. 'leases'
local DONE = PREFIX .. 'done'
local SLOTS = PREFIX .. 'slots'
local SLOTS_MISSING = PREFIX .. 'slots_missing'
local WARM = PREFIX .. 'warm'
local WARM_COUNTS = PREFIX .. 'warm_counts'
local OUTBOX = PREFIX .. 'outbox'
local STORAGE_OUTAGE = PREFIX .. 'storage_outage'
local COMPACT_FROM = PREFIX .. 'compact_from'
local RUN_ID = PREFIX .. 'run_id'
local REAPED_MS = PREFIX .. 'reaped_ms'
local AUDIT_LEADER = PREFIX .. 'audit'

local function job_key(job) return PREFIX .. 'job:' .. job end
local function item_key(id) return PREFIX .. 'item:' .. id end
local function specs_key(job) return PREFIX .. 'specs:' .. job end
local function results_key(job) return PREFIX .. 'results:' .. job end
local function result_parts_key(job) return PREFIX .. 'result_parts:' .. job end
local function slot_key(slot) return PREFIX .. 'slot:' .. slot end
local function claims_key(slot) return PREFIX .. 'claims:' .. slot end
local function idempotency_key(tenant, key) return PREFIX .. 'idem:' .. tenant .. ':' .. key end
local function pending_key(pool) return PREFIX .. 'pending:' .. pool end
local function shares_key(pool) return PREFIX .. 'shares:' .. pool end
local function lanes_key(pool, share) return PREFIX .. 'lanes:' .. pool .. ':' .. share end
local function lane_key(pool, lane) return PREFIX .. 'lane:' .. pool .. ':' .. lane end
local function busy_key(pool) return PREFIX .. 'busy:' .. pool end
local function served_key(pool) return PREFIX .. 'served:' .. pool end
local function turns_key(pool) return PREFIX .. 'turns:' .. pool end
local function turn_entries_key(pool) return PREFIX .. 'turn_entries:' .. pool end
local function pace_key(pool) return PREFIX .. 'pace:' .. pool end
local function wake_list_key(pool) return PREFIX .. 'wake.' .. pool end

-- Return the time in ms since the epoch, by Redis' clock, so that differences between hosts do not matter. Tests pass
-- a time instead.
local function now_ms()
  if args.now_ms then return args.now_ms end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Return the named fields of a hash as multiple values.
local function fields(key, ...)
  return unpack(redis.call('HMGET', key, ...))
end

-- Redis stores a hash compactly (340 instead of 1,300 bytes for an item) while no value has more than 64 bytes. So an
-- item in the compact form keeps its long texts in lists of its job: `specs` has the values that all items share and then
-- those of each item, `results` a line for each item that succeeded or failed, in the order of their ends: index,
-- position of the common part in `result_parts`, own part. In the whole form, which processes of an earlier version
-- read, the item's hash holds its texts.
local function job_and_index(id) return id:match('^(.*):(%d+)$') end

local function is_whole(id) return redis.call('HEXISTS', item_key(id), 'spec') == 1 end

-- Return the texts that make up an item's spec; `whole` is the field `spec` of its hash, if it has one.
local function spec_texts(id, whole)
  if whole then return {whole} end
  local job, index = job_and_index(id)
  local texts = {redis.call('LINDEX', specs_key(job), 0)}
  texts[2] = redis.call('LINDEX', specs_key(job), index + 1) or nil
  return texts
end

-- Common parts that are compared with a new one: a job has about one for each worker and kind of adapter swap.
local PARTS_COMPARED = 64

-- Store the result or the error (field) of an item that ends, as JSON texts: its own part, and the part that other items
-- of the job are likely to have too.
local function store_outcome(id, field, own, common)
  if is_whole(id) then
    local text = own == '{}' and common or own:sub(1, -2) .. ',' .. common:sub(2)
    redis.call('HSET', item_key(id), field, text)
    return
  end
  local job, index = job_and_index(id)
  local position = redis.call('LPOS', result_parts_key(job), common, 'MAXLEN', PARTS_COMPARED)
  if not position then position = redis.call('RPUSH', result_parts_key(job), common) - 1 end
  redis.call('RPUSH', results_key(job), index .. ' ' .. position .. ' ' .. own)
end

-- Return what remains of the parameters of a canceled item: the number of steps, for the progress of its job.
local function steps_only(text)
  -- Only a member of the object equals this: inside a text of JSON, a backslash precedes each quote. A plain search, for
  -- a pattern takes 180 ms for 4 MB of prompts, in which Redis serves nobody.
  local _, position = text:find('"num_inference_steps":', 1, true)
  local steps = position and text:match('^%d+', position + 1)
  return steps and '{"num_inference_steps":' .. steps .. '}' or '{}'
end

-- Keep the parameters of a text of `specs`, its first line, and drop the inputs, which only a render needs. Of a
-- canceled item keep the number of steps only.
local function keep_parameters(job, position, state)
  local text = redis.call('LINDEX', specs_key(job), position)
  if not text then return end
  local line_break = text:find('\n', 1, true)
  if state == 'canceled' then
    redis.call('LSET', specs_key(job), position, steps_only(text))
  elseif line_break then
    redis.call('LSET', specs_key(job), position, text:sub(1, line_break - 1))
  end
end

-- Drop what no view shows of an item that ended.
local function shrink_ended_item(id, state)
  local key, job, index = item_key(id), job_and_index(id)
  redis.call('HDEL', key, 'job', 'pool', 'tenant', 'lane', 'seq', 'accepted_ms', 'boot', 'nonce', 'progress')
  keep_parameters(job, index + 1, state)
  local whole = state == 'canceled' and redis.call('HGET', key, 'spec')
  if whole then redis.call('HSET', key, 'spec', steps_only(whole)) end
end

-- Return the name of an adapter key in a lane: short, because sha256 sums would make the item's hash a large one. Two
-- keys with one name would share a lane, which costs an adapter swap.
local function short_adapters(adapter_key)
  if #adapter_key <= 24 then return adapter_key end
  return '~' .. redis.sha1hex(adapter_key):sub(1, 20)
end

-- A pool is a model, an engine and features, which a worker must offer to claim an item. Each pool has its own queue and pace.
-- A share is a priority and a tenant; a lane holds the queued items of one share that want the same adapters. A lane
-- is scored by its oldest item, so that choosing costs by the number of shares and slots, not of lanes or items.
local function share_of(lane) return lane:match('^%d+|[^|]*') end

local function rescore_lane(pool, lane)
  local head = redis.call('ZRANGE', lane_key(pool, lane), 0, 0, 'WITHSCORES')
  if head[1] then
    redis.call('ZADD', lanes_key(pool, share_of(lane)), head[2], lane)
  else
    redis.call('ZREM', lanes_key(pool, share_of(lane)), lane)
  end
end

-- A pool's shares take turns: by priority, then fewest running items, then longest unserved. `turns` is a sorted set
-- of equal scores, so texts order it: no number of items or ms is too large for its score. `turn_entries` is the text
-- of each share, by which it is found again.
local MOST_RUNNING, LAST_PRIORITY = 999999, 9

-- `busy` and `served` are tables with the values of these hashes by tenant.
local function turn_entry_of(share, busy, served)
  local priority, tenant = share:match('^(%d+)|(.*)$')
  local running, served_ms = tonumber(busy[tenant] or 0), tonumber(served[tenant] or 0)
  return string.format('%s|%06d|%014.0f|%s', priority, math.min(math.max(running, 0), MOST_RUNNING), served_ms, tenant)
end

local function turn_entry(pool, share)
  local tenant = share:match('^%d+|(.*)$')
  local busy = {[tenant] = redis.call('HGET', busy_key(pool), tenant)}
  local served = {[tenant] = redis.call('HGET', served_key(pool), tenant)}
  return turn_entry_of(share, busy, served)
end

local function remove_turn(pool, share)
  local entry = redis.call('HGET', turn_entries_key(pool), share)
  if not entry then return end
  redis.call('ZREM', turns_key(pool), entry)
  redis.call('HDEL', turn_entries_key(pool), share)
end

-- `before` is the share's present entry, or false.
local function replace_turn(pool, share, before)
  local entry = turn_entry(pool, share)
  if before == entry then return end
  if before then redis.call('ZREM', turns_key(pool), before) end
  redis.call('ZADD', turns_key(pool), 0, entry)
  redis.call('HSET', turn_entries_key(pool), share, entry)
end

local function set_turn(pool, share)
  replace_turn(pool, share, redis.call('HGET', turn_entries_key(pool), share))
end

-- Correct the turns of a tenant whose running items or last claim changed.
local function update_turns(pool, tenant)
  local shares = {}
  for priority = 0, LAST_PRIORITY do shares[priority + 1] = priority .. '|' .. tenant end
  for position, entry in ipairs(redis.call('HMGET', turn_entries_key(pool), unpack(shares))) do
    if entry then replace_turn(pool, shares[position], entry) end
  end
end

-- Queue an item at its accept order, so that one that was requeued goes to the head.
local function enqueue(id, pool, lane, order)
  redis.call('ZADD', pending_key(pool), order, id)
  redis.call('ZADD', lane_key(pool, lane), order, id)
  if redis.call('HINCRBY', shares_key(pool), share_of(lane), 1) == 1 then set_turn(pool, share_of(lane)) end
  rescore_lane(pool, lane)
end

local function dequeue(id, pool, lane)
  if redis.call('ZREM', pending_key(pool), id) == 0 then return end
  redis.call('ZREM', lane_key(pool, lane), id)
  if redis.call('HINCRBY', shares_key(pool), share_of(lane), -1) <= 0 then
    redis.call('HDEL', shares_key(pool), share_of(lane))
    remove_turn(pool, share_of(lane))
  end
  rescore_lane(pool, lane)
end

local function end_lease(id, pool, tenant)
  redis.call('ZREM', LEASES, id)
  redis.call('HDEL', item_key(id), 'lease_ttl_ms')
  local slot = redis.call('HGET', item_key(id), 'slot')
  if slot then redis.call('HDEL', claims_key(slot), id) end
  if redis.call('HINCRBY', busy_key(pool), tenant, -1) == 0 then
    redis.call('HDEL', busy_key(pool), tenant)
  end
  update_turns(pool, tenant)
end

-- Set the state of a job whose items have all ended.
local function end_job(job, now)
  local key = job_key(job)
  local canceled, failed, items = fields(key, 'canceled', 'failed', 'items')
  local state = 'succeeded'
  if tonumber(canceled) > 0 then state = 'canceled' elseif tonumber(failed) > 0 then state = 'failed' end
  redis.call('HSET', key, 'state', state, 'finished_ms', now)
  redis.call('ZADD', DONE, now, job)
  keep_parameters(job, 0, canceled == items and 'canceled' or 'succeeded')
  -- In the step that ends the job: its webhook is sent even if every process dies right after.
  if redis.call('HEXISTS', key, 'webhook') == 1 then redis.call('ZADD', OUTBOX, now, job) end
end

-- Move an item from one state to another and derive its job's state from the counts.
local function move(id, job, from, to, now)
  local key = job_key(job)
  redis.call('HSET', item_key(id), 'state', to)
  redis.call('HINCRBY', key, from, -1)
  redis.call('HINCRBY', key, to, 1)
  if to == 'running' then
    redis.call('HSET', key, 'state', 'running')
    redis.call('HSETNX', key, 'started_ms', now)
  elseif to ~= 'queued' then
    redis.call('HSET', item_key(id), 'finished_ms', now)
    shrink_ended_item(id, to)
    local queued, running = fields(key, 'queued', 'running')
    if tonumber(queued) + tonumber(running) == 0 then end_job(job, now) end
  end
end

local function end_item(id, job, pool, tenant, to, now)
  end_lease(id, pool, tenant)
  redis.call('HINCRBY', item_key(id), 'commits', 1)
  move(id, job, 'running', to, now)
end

-- Requeue a running item, or end it: first because its job is canceled, then because it has no attempts left.
-- Returns the item's new state and its pool.
local function requeue_or_end(id, now, max_attempts, error_json)
  local job, pool, tenant, lane, order, attempt =
    fields(item_key(id), 'job', 'pool', 'tenant', 'lane', 'seq', 'attempt')
  if redis.call('HGET', job_key(job), 'cancel') == '1' then
    end_item(id, job, pool, tenant, 'canceled', now)
    return 'canceled', pool
  end
  if tonumber(attempt) >= max_attempts then
    store_outcome(id, 'error', '{}', error_json)
    end_item(id, job, pool, tenant, 'failed', now)
    return 'failed', pool
  end
  end_lease(id, pool, tenant)
  redis.call('HDEL', item_key(id), 'progress', 'slot', 'boot', 'nonce')
  redis.call('HSET', item_key(id), 'queued_ms', now)
  move(id, job, 'running', 'queued', now)
  enqueue(id, pool, lane, order)
  return 'queued', pool
end

-- Whether the claim with this fence still owns the item.
local function is_owned(id, fence)
  local state, current = fields(item_key(id), 'state', 'fence')
  return state == 'running' and tonumber(current) == fence
end

-- Record the adapter key that a slot has merged, or none (nil): by its name in a lane. WARM_COUNTS is the number of
-- slots in WARM by that name.
local function set_warm(slot, adapter_key)
  adapter_key = adapter_key and short_adapters(adapter_key)
  local before = redis.call('HGET', WARM, slot)
  if before == (adapter_key or false) then return end
  if before and redis.call('HINCRBY', WARM_COUNTS, before, -1) <= 0 then redis.call('HDEL', WARM_COUNTS, before) end
  if adapter_key then
    redis.call('HSET', WARM, slot, adapter_key)
    redis.call('HINCRBY', WARM_COUNTS, adapter_key, 1)
  else
    redis.call('HDEL', WARM, slot)
  end
end

-- Slots forgotten in one step; the next step forgets the rest.
local DEAD_AT_ONCE = 20

local function forget_slots(since, until_ms)
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', SLOTS, since, until_ms, 'LIMIT', 0, DEAD_AT_ONCE)) do
    redis.call('ZREM', SLOTS, slot)
    set_warm(slot, nil)
  end
end

-- Forget the slots whose heartbeat is too old, and those that died before the clock went back.
local function forget_dead_slots(now, slot_ttl_ms)
  -- No heartbeat of any slot came for long: Redis stalled, or its clock was set. Slots that live may look dead until each
  -- has sent its next heartbeat. Recorded here, because the slots that prove it are about to be forgotten.
  local newest_ms = redis.call('ZRANGE', SLOTS, -1, -1, 'WITHSCORES')[2]
  if newest_ms and math.abs(now - newest_ms) > slot_ttl_ms / 2 then
    redis.call('SET', SLOTS_MISSING, 1, 'PX', slot_ttl_ms)
  end
  forget_slots('-inf', string.format('(%.0f', now - slot_ttl_ms))
  forget_slots(string.format('(%.0f', now + slot_ttl_ms), '+inf')
end
