-- Put before every script. ARGV[1] is the time in ms, or '' to take Redis' own clock (tests pass one).
-- Times are ms since the epoch; no client clock is ever read.
local P = 'flux2:'

local function now_ms()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(job) return P .. 'job:' .. job end
local function item_key(id) return P .. 'item:' .. id end

local function fields(key, ...)
  return redis.call('HMGET', key, ...)
end

-- A pool is what one worker can be asked for: a model and an engine. Everything about waiting and pace goes by it.
-- A lane holds the queued items of one share (priority and tenant) that want one adapter list. It is scored by its
-- oldest item, so that choosing costs by the number of shares and slots, not by the number of lanes or items.
local function lane_key(pool, lane) return P .. 'lane:' .. pool .. ':' .. lane end
local function lanes_key(pool, share) return P .. 'lanes:' .. pool .. ':' .. share end
local function share_of(lane) return lane:match('^%d+|[^|]*') end

local function rescore(pool, lane)
  local head = redis.call('ZRANGE', lane_key(pool, lane), 0, 0, 'WITHSCORES')
  if head[1] then
    redis.call('ZADD', lanes_key(pool, share_of(lane)), head[2], lane)
  else
    redis.call('ZREM', lanes_key(pool, share_of(lane)), lane)
  end
end

-- Queue an item at its accept order, so that one which comes back goes to the head.
local function enqueue(id, pool, lane, seq)
  redis.call('ZADD', P .. 'pending:' .. pool, seq, id)
  redis.call('ZADD', lane_key(pool, lane), seq, id)
  redis.call('HINCRBY', P .. 'shares:' .. pool, share_of(lane), 1)
  rescore(pool, lane)
end

local function dequeue(id, pool, lane)
  if redis.call('ZREM', P .. 'pending:' .. pool, id) == 0 then return end
  redis.call('ZREM', lane_key(pool, lane), id)
  if redis.call('HINCRBY', P .. 'shares:' .. pool, share_of(lane), -1) == 0 then
    redis.call('HDEL', P .. 'shares:' .. pool, share_of(lane))
  end
  rescore(pool, lane)
end

local function end_lease(id, pool, tenant)
  redis.call('ZREM', P .. 'leases', id)
  if redis.call('HINCRBY', P .. 'busy:' .. pool, tenant, -1) == 0 then
    redis.call('HDEL', P .. 'busy:' .. pool, tenant)
  end
end

-- Move an item between states and derive its job's state from the counts.
local function move(id, job, from, to, now)
  local key = job_key(job)
  redis.call('HSET', item_key(id), 'state', to)
  redis.call('HINCRBY', key, from, -1)
  redis.call('HINCRBY', key, to, 1)
  if to == 'running' then
    redis.call('HSET', key, 'state', 'running')
    redis.call('HSETNX', key, 'started_ms', now)
    return
  end
  if to == 'queued' then return end
  redis.call('HSET', item_key(id), 'finished_ms', now)
  local n = fields(key, 'queued', 'running', 'canceled', 'failed')
  if tonumber(n[1]) + tonumber(n[2]) > 0 then return end
  local state = 'succeeded'
  if tonumber(n[3]) > 0 then state = 'canceled' elseif tonumber(n[4]) > 0 then state = 'failed' end
  redis.call('HSET', key, 'state', state, 'finished_ms', now)
  redis.call('ZADD', P .. 'done', now, job)
  -- In the same step as the end itself, so that no end goes untold whoever dies next.
  if redis.call('HEXISTS', key, 'webhook') == 1 then redis.call('ZADD', P .. 'outbox', now, job) end
end

local function end_item(id, job, pool, tenant, to, now)
  end_lease(id, pool, tenant)
  redis.call('HINCRBY', item_key(id), 'commits', 1)
  move(id, job, 'running', to, now)
end

-- A running item goes back to the queue, or ends: canceled wins, then the attempt cap.
local function give_back(id, now, max_attempts, error_json)
  local f = fields(item_key(id), 'job', 'pool', 'tenant', 'lane', 'seq', 'attempt')
  local job, pool, tenant = f[1], f[2], f[3]
  if redis.call('HGET', job_key(job), 'cancel') == '1' then
    end_item(id, job, pool, tenant, 'canceled', now)
    return 'canceled', pool
  end
  if tonumber(f[6]) >= max_attempts then
    redis.call('HSET', item_key(id), 'error', error_json)
    end_item(id, job, pool, tenant, 'failed', now)
    return 'failed', pool
  end
  end_lease(id, pool, tenant)
  redis.call('HDEL', item_key(id), 'progress', 'slot', 'boot', 'nonce')
  redis.call('HSET', item_key(id), 'queued_ms', now)
  move(id, job, 'running', 'queued', now)
  enqueue(id, pool, f[4], f[5])
  return 'queued', pool
end

-- Does this worker still own the item?
local function owned(id, fence)
  local f = fields(item_key(id), 'state', 'fence')
  return f[1] == 'running' and f[2] == fence
end
