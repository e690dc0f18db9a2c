-- Record the outcome of an attempt to deliver a webhook message.
--
-- Arguments:
--   message  id of the job, or '#' and that of the item
--   attempt  number of this attempt
--   state    'delivered' | 'waiting' | 'failed'
--   wait_ms  time until a waiting message is due again
--   error    why it was not delivered; empty for a delivered one
--   reached  whether its host answered; absent if nothing was sent
--   pause_ms, longest_pause_ms  first and longest pause of a host that did not answer
--   jitter   factor for that pause, around 1
-- Keys: outbox with all its parts, item_outbox, job, item, totals
-- Returns 1, or 0 if nothing changes: the message has gone, or another sender has it now
local now = outbox_now()
local message = args.message
local job, url, tenant, record = read_message(message)
local attempts = redis.call('HGET', record, 'webhook_attempts')

-- Pause a tenant's route to a host. Only this tenant's: its URL may hang at a host that answers everyone else.
local function pause(host)
  local key = pause_key(tenant, host)
  local failures, probe, until_ms = fields(key, 'failures', 'probe', 'until_ms')
  -- An attempt that began before the pause did adds nothing to it.
  if failures and probe ~= message and tonumber(until_ms) > now then return end
  failures = tonumber(failures or 0) + 1
  local pause_ms = math.min(args.pause_ms * 2 ^ math.min(failures - 1, 30), args.longest_pause_ms)
  until_ms = now + math.floor(pause_ms * args.jitter)
  redis.call('HSET', key, 'failures', failures, 'until_ms', until_ms)
  redis.call('HSETNX', key, 'since_ms', now)
  redis.call('HDEL', key, 'probe')
  redis.call('PEXPIRE', key, DAY_MS)
  redis.call('ZREM', waiters_key(host), tenant)
  move_route(tenant, host, until_ms, now)
end

-- Another sender has the message if this one's reservation ended before its attempt did.
local is_current = not attempts or tonumber(attempts) == args.attempt
if not url then
  redis.call('ZREM', SENDING, message)
elseif is_current then
  local host = host_of(url)
  end_attempt(message, host, now)
  if args.reached == false then
    pause(host)
  elseif args.reached and redis.call('DEL', pause_key(tenant, host)) == 1 then
    move_route(tenant, host, now, now)
  end
end

if not redis.call('ZSCORE', due_key(message), message) then return 0 end
if is_item(message) and not url then
  -- Nothing is left in which an outcome could be recorded.
  redis.call('ZREM', ITEM_OUTBOX, message)
  return 0
end
if not is_current and args.state ~= 'delivered' then return 0 end
if args.state == 'waiting' then
  redis.call('ZADD', due_key(message), now + args.wait_ms, message)
else
  remove_message(message, job)
  -- An item's hash stays small.
  if is_item(message) then redis.call('HDEL', record, 'webhook_attempts') end
end
record_delivery(message, job, args.state, args.error)
return 1
