-- The moves of items between states, and the end of jobs; part of every script.

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

-- Whether a list of states with commas between them, or false for all, has a state; no state's name is a part of another's.
local function names_state(states, state) return not states or states:find(state, 1, true) ~= nil end

-- Set the state of a job whose items have all ended.
local function end_job(job, now)
  local key = job_key(job)
  local canceled, failed, items, deadline_ms = fields(key, 'canceled', 'failed', 'items', 'deadline_ms')
  local state = 'succeeded'
  if tonumber(canceled) > 0 then state = 'canceled' elseif tonumber(failed) > 0 then state = 'failed' end
  redis.call('HSET', key, 'state', state, 'finished_ms', now)
  redis.call('ZADD', DONE, now, job)
  if deadline_ms then redis.call('ZREM', DEADLINES, job) end
  keep_parameters(job, 0, canceled == items and 'canceled' or 'succeeded')
  -- In the step that ends the job: its webhook is sent even if every process dies right after.
  local webhook, states = fields(key, 'webhook', 'webhook_states')
  if webhook and names_state(states, state) then redis.call('ZADD', OUTBOX, now, job) end
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
    -- Those that succeeded count in `usage_totals`.
    if to ~= 'succeeded' then redis.call('HINCRBY', TOTALS, 'items_' .. to, 1) end
    shrink_ended_item(id, to)
    local queued, running, item_states = fields(key, 'queued', 'running', 'item_states')
    if item_states and names_state(item_states, to) then
      -- '#' distinguishes the item from a job, in the routes that the messages of both share.
      redis.call('ZADD', ITEM_OUTBOX, now, '#' .. id)
      redis.call('HINCRBY', key, 'item_messages', 1)
    end
    if tonumber(queued) + tonumber(running) == 0 then end_job(job, now) end
  end
end

local function end_item(id, job, pool, tenant, to, now)
  end_lease(id, pool, tenant)
  count_attempt(id, job, tenant, to == 'succeeded', now)
  redis.call('HINCRBY', item_key(id), 'commits', 1)
  move(id, job, 'running', to, now)
end

-- Whether the items of a job may not start any more, because its deadline has passed.
local function is_too_late(job, now)
  local deadline_ms = redis.call('HGET', job_key(job), 'deadline_ms')
  return deadline_ms and now >= tonumber(deadline_ms)
end

-- Record that an item is canceled because its job's deadline has passed.
local function mark_late(id)
  redis.call('HSET', item_key(id), 'late', 1)
  redis.call('HINCRBY', TOTALS, 'deadline_exceeded', 1)
end

-- Cancel a queued item whose job's deadline has passed.
local function cancel_late(id, job, pool, lane, now)
  dequeue(id, pool, lane)
  mark_late(id)
  move(id, job, 'queued', 'canceled', now)
end

-- Requeue a running item, in its pool or in `next_pool`, or end it: first because its job is canceled, then because it has
-- no attempts left, then because it is too late for another one. Returns the item's new state and its pool.
local function requeue_or_end(id, now, max_attempts, error_json, next_pool)
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
  if is_too_late(job, now) then
    mark_late(id)
    end_item(id, job, pool, tenant, 'canceled', now)
    return 'canceled', pool
  end
  end_lease(id, pool, tenant)
  count_attempt(id, job, tenant, false, now)
  redis.call('HDEL', item_key(id), 'progress', 'slot', 'boot', 'nonce', 'gpu_ms', 'why')
  pool = next_pool or pool
  redis.call('HSET', item_key(id), 'queued_ms', now, 'pool', pool)
  move(id, job, 'running', 'queued', now)
  enqueue(id, pool, lane, order)
  return 'queued', pool
end

-- Whether the claim with this fence still owns the item.
local function is_owned(id, fence)
  local state, current = fields(item_key(id), 'state', 'fence')
  return state == 'running' and tonumber(current) == fence
end

