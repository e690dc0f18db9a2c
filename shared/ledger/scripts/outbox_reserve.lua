-- Return webhook messages that are due, and reserve them: none is due again before the reservation ends. Tenants take
-- turns; a host gets few messages at a time, and none while it is paused.
--
-- Arguments:
--   reserve_ms   length of the reservation
--   limit        most messages to return
--   give_up_ms   time after which the messages of a host that never answered are given up
--   is_last_step choose messages even if some that are due are not on their routes yet
-- Keys: outbox with all its parts, item_outbox, job, item, totals
-- Returns {1 if another step is needed, else 0; a flat list: message (the id of a job, or '#' and that of an item),
--   URL, attempts including this one, message, ...; messages that were given up}
local now, gap_ms, clock = outbox_now()

-- Each step examines at most so many messages, tenants and routes; Redis serves no other client during it.
local AT_ONCE = 100
-- Longer than the pause between two steps, and shorter than the margin by which a reservation outlasts an attempt.
local GAP_MS = 5000
-- A message that still waits on its route after this time is put on it again, so that a lost index heals.
local ON_ROUTE_MS = 600000

-- Processes may have different timeouts.
local longest_reserve_ms = math.max(args.reserve_ms, tonumber(redis.call('HGET', CLOCK, 'reserve_ms') or 0))

-- After a step of the clock, attempts that are under way would seem to be over: their reservations start again.
local function extend_reservations()
  local until_ms = now + longest_reserve_ms
  for _, message in ipairs(redis.call('ZRANGE', SENDING, 0, 999)) do
    local due_ms = redis.call('ZSCORE', due_key(message), message)
    local _, url = read_message(message)
    if not due_ms or not url then
      redis.call('ZREM', SENDING, message)
    elseif tonumber(due_ms) < until_ms then
      redis.call('ZADD', due_key(message), until_ms, message)
      redis.call('ZADD', SENDING, until_ms, message)
      redis.call('ZADD', attempts_key(host_of(url)), until_ms, message)
    end
  end
end

-- A paused host gets too few attempts for each message to spend its own, so its messages end by age.
local function must_give_up(record, tenant, host)
  local since_ms = tonumber(redis.call('HGET', pause_key(tenant, host), 'since_ms') or now)
  if now - since_ms < args.give_up_ms then return false end
  local finished_ms, resent_ms = fields(record, 'finished_ms', 'webhook_resent_ms')
  return clock - tonumber(resent_ms or finished_ms or clock) >= args.give_up_ms
end

local given_up = {}

-- Put a due message on its tenant's route to its host, or give it up.
local function put_on_route(message, position)
  local job, url, tenant, record = read_message(message)
  if not url then
    redis.call('ZREM', due_key(message), message)
    redis.call('ZREM', SENDING, message)
    return
  end
  local host = host_of(url)
  -- The message is due, so a reservation that it had is over.
  end_attempt(message, host, now)
  local states, state = fields(record, 'webhook_states', 'state')
  if not is_item(message) and not names_state(states, state or '') then
    -- A process of an earlier version ended the job, and does not know that the caller chose its events.
    remove_message(message, job)
    return
  end
  if must_give_up(record, tenant, host) then
    remove_message(message, job)
    record_delivery(message, job, 'failed', 'given up: its host does not answer')
    given_up[#given_up + 1] = message
    return
  end
  local time = now + ON_ROUTE_MS + position
  redis.call('ZADD', due_key(message), time, message)
  redis.call('ZADD', messages_key(tenant, host), time, message)
  local paused_until_ms = tonumber(redis.call('HGET', pause_key(tenant, host), 'until_ms') or 0)
  redis.call('ZADD', hosts_key(tenant), 'NX', math.max(now, paused_until_ms), host)
  schedule_tenant(tenant, now)
end

-- Reserve the first message of a route. Returns nothing if the route is empty, or its host has no free place.
local function reserve_first(tenant, host)
  local until_ms = now + args.reserve_ms
  redis.call('ZREMRANGEBYSCORE', attempts_key(host), '-inf', now)
  if redis.call('ZCARD', attempts_key(host)) >= ATTEMPTS_PER_HOST then
    redis.call('ZADD', waiters_key(host), 'NX', next_turn(), tenant)
    redis.call('PEXPIRE', waiters_key(host), DAY_MS)
    -- Until a place is free; this time counts only if the sender there dies.
    redis.call('ZADD', hosts_key(tenant), until_ms, host)
    return
  end
  redis.call('ZREM', waiters_key(host), tenant)
  local messages = messages_key(tenant, host)
  local message, time = unpack(redis.call('ZRANGE', messages, 0, 0, 'WITHSCORES'))
  if message then redis.call('ZREM', messages, message) end
  local is_due = message and redis.call('ZSCORE', due_key(message), message) == time
  if redis.call('EXISTS', messages) == 0 then
    redis.call('ZREM', hosts_key(tenant), host)
  elseif is_due and redis.call('EXISTS', pause_key(tenant, host)) == 1 then
    -- One message finds out whether the host answers again; the others wait for it.
    redis.call('ZADD', hosts_key(tenant), until_ms, host)
  elseif is_due then
    redis.call('ZADD', hosts_key(tenant), now, host)
  end
  if not is_due then return end
  if redis.call('EXISTS', pause_key(tenant, host)) == 1 then
    redis.call('HSET', pause_key(tenant, host), 'probe', message, 'until_ms', until_ms)
  end
  redis.call('ZADD', due_key(message), until_ms, message)
  redis.call('ZADD', SENDING, until_ms, message)
  redis.call('ZADD', attempts_key(host), until_ms, message)
  redis.call('PEXPIRE', attempts_key(host), DAY_MS)
  return message
end

-- Return the next message in turn, looking at no more routes than are left.
local routes_left = AT_ONCE
local function next_message()
  while routes_left > 0 do
    local tenant = redis.call('ZRANGE', TURNS, 0, 0)[1]
    if not tenant then return end
    routes_left = routes_left - 1
    local host = redis.call('ZRANGEBYSCORE', hosts_key(tenant), '-inf', now, 'LIMIT', 0, 1)[1]
    local message = host and reserve_first(tenant, host)
    schedule_tenant(tenant, now, message)
    if message then return message end
  end
end

if gap_ms > GAP_MS then extend_reservations() end
-- Not for an empty outbox: an idle API writes nothing.
if redis.call('EXISTS', OUTBOX) + redis.call('EXISTS', ITEM_OUTBOX) > 0 then
  redis.call('HSET', CLOCK, 'seen_ms', clock, 'reserve_ms', longest_reserve_ms)
end

-- Items first: their messages go before the one about the end of their job, if nothing delays them.
local is_rest = false
for number, outbox in ipairs({ITEM_OUTBOX, OUTBOX}) do
  local due = redis.call('ZRANGEBYSCORE', outbox, '-inf', now, 'LIMIT', 0, AT_ONCE)
  for position, message in ipairs(due) do put_on_route(message, (number - 1) * AT_ONCE + position) end
  is_rest = is_rest or #due == AT_ONCE
end
local ready = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, AT_ONCE)
for _, tenant in ipairs(ready) do schedule_tenant(tenant, now) end

local needs_more = is_rest or #ready == AT_ONCE
local messages = {}
if not needs_more or args.is_last_step then
  for _ = 1, args.limit do
    local message = next_message()
    if not message then break end
    local _, url, _, record = read_message(message)
    -- A process of an earlier version may have forgotten the job: it knows no messages about items. Then the message is
    -- dropped when its reservation ends.
    if url then
      messages[#messages + 1] = message
      messages[#messages + 1] = url
      messages[#messages + 1] = redis.call('HINCRBY', record, 'webhook_attempts', 1)
    end
  end
end
return {(needs_more or routes_left == 0) and 1 or 0, messages, given_up}
