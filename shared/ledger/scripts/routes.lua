-- The routes on which due webhooks wait; a part of the scripts that reserve messages and record their outcomes.
--
-- OUTBOX and ITEM_OUTBOX alone say which messages exist and when each is due: those about jobs, by the id of the job, and
-- those about items, by '#' and the id of the item. The first has only what a process of an earlier version can send. The
-- other keys are an index over those that are due: the
-- messages of one tenant to one host (with its port) share a route, and tenants take turns. An index that is lost or
-- wrong heals: a message that goes on its route gets a later time in OUTBOX, and goes on the route again when that time
-- comes. A route's entry counts only while OUTBOX has the same time, because a process of an earlier version takes
-- messages from OUTBOX without knowing routes.
local CLOCK = OUTBOX .. ':clock'
local TURNS = OUTBOX .. ':turns'
local DELAYED = OUTBOX .. ':delayed'
local SENDING = OUTBOX .. ':sending'

-- Attempts that one host gets at a time, from all processes.
local ATTEMPTS_PER_HOST = 2
-- Keys of hosts that no message goes to any more expire.

local function is_item(message) return message:sub(1, 1) == '#' end
local function due_key(message) return is_item(message) and ITEM_OUTBOX or OUTBOX end

-- Return the job of a message, its URL, its tenant, and the key of the hash that counts its attempts; no URL if the job or
-- the item has gone.
local function read_message(message)
  if not is_item(message) then
    local url, tenant = fields(job_key(message), 'webhook', 'tenant')
    return message, url, tenant or '', job_key(message)
  end
  local id = message:sub(2)
  local job = job_and_index(id)
  local url, tenant = fields(job_key(job), 'item_webhook', 'tenant')
  if redis.call('EXISTS', item_key(id)) == 0 then url = false end
  return job, url, tenant or '', item_key(id)
end

-- Remove a message that will not be sent again; return whether it was there.
local function remove_message(message, job)
  if redis.call('ZREM', due_key(message), message) == 0 then return false end
  if is_item(message) then redis.call('HINCRBY', job_key(job), 'item_messages', -1) end
  return true
end

-- Record how the delivery of a message stands.
local function record_delivery(message, job, state, text)
  if state ~= 'waiting' then redis.call('HINCRBY', TOTALS, 'webhooks_' .. state, 1) end
  if not is_item(message) then
    redis.call('HSET', job_key(job), 'webhook_state', state, 'webhook_error', text)
    return
  end
  if state == 'failed' then redis.call('HINCRBY', job_key(job), 'item_messages_failed', 1) end
  if text ~= '' then redis.call('HSET', job_key(job), 'item_webhook_error', text) end
end

local function route_name(tenant, host) return tenant .. '|' .. host end
local function messages_key(tenant, host) return OUTBOX .. ':messages:' .. route_name(tenant, host) end
local function hosts_key(tenant) return OUTBOX .. ':hosts:' .. tenant end
local function pause_key(tenant, host) return OUTBOX .. ':pause:' .. route_name(tenant, host) end
local function attempts_key(host) return OUTBOX .. ':attempts:' .. host end
local function waiters_key(host) return OUTBOX .. ':waiters:' .. host end

-- Return the outbox's time in ms, the time since the last look at the clock, and the clock itself.
-- The outbox's time follows Redis' clock but does not go back with it, or every message would wait for as long again.
local function outbox_now()
  local clock = now_ms()
  local seen, ahead = fields(CLOCK, 'seen_ms', 'ahead_ms')
  seen, ahead = tonumber(seen or clock), tonumber(ahead or 0)
  if clock < seen then
    ahead = ahead + seen - clock
    redis.call('HSET', CLOCK, 'seen_ms', clock, 'ahead_ms', ahead)
    seen = clock
  end
  return clock + ahead, clock - seen, clock
end

-- Return the host and port of a URL. Two spellings of a host are two hosts.
local function host_of(url)
  local scheme, authority = url:lower():match('^(%w+)://([^/?#]*)')
  if not authority then return '' end
  local host = authority:match('[^@]*$')
  if not host:match(':%d+$') then host = host .. (scheme == 'http' and ':80' or ':443') end
  return host:sub(1, 300)
end

-- Return a number that is higher than all before it: turns of the same millisecond have an order too.
local function next_turn() return redis.call('HINCRBY', CLOCK, 'turn', 1) end

-- Give a tenant a turn if one of its routes may be served now; else delay it until the first may. A tenant that was
-- just served goes to the end.
local function schedule_tenant(tenant, now, was_served)
  local first = redis.call('ZRANGE', hosts_key(tenant), 0, 0, 'WITHSCORES')
  if first[1] and tonumber(first[2]) <= now then
    redis.call('ZREM', DELAYED, tenant)
    if was_served or not redis.call('ZSCORE', TURNS, tenant) then
      redis.call('ZADD', TURNS, next_turn(), tenant)
    end
  else
    redis.call('ZREM', TURNS, tenant)
    if first[1] then redis.call('ZADD', DELAYED, first[2], tenant) else redis.call('ZREM', DELAYED, tenant) end
  end
end

-- Serve an existing route from a time on.
local function move_route(tenant, host, time, now)
  redis.call('ZADD', hosts_key(tenant), 'XX', time, host)
  schedule_tenant(tenant, now)
end

-- End an attempt: its place at the host goes to the tenant that has waited longest for one.
local function end_attempt(job, host, now)
  redis.call('ZREM', SENDING, job)
  if redis.call('ZREM', attempts_key(host), job) == 0 then return end
  for _ = 1, 10 do
    local tenant = redis.call('ZPOPMIN', waiters_key(host))[1]
    if not tenant then return end
    if redis.call('ZSCORE', hosts_key(tenant), host) then return move_route(tenant, host, now, now) end
  end
end
