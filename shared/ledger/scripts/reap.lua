-- Requeue or end the items whose lease expired, unless no worker could renew it in time.
--
-- Arguments:
--   lease_ttl_ms  term of a lease that states none, because an earlier version granted it
--   reap_ms       period of the caller's passes
--   max_attempts  claims after which an item fails
--   error_json    the error of an item that fails: its workers were lost
--   usage_ttl_s   how long the usage of a day is kept
-- Keys: totals, run_id, reaped_ms, leases, slots, audit, large_audit, references_audit, sigmas_audit, and those of
--   requeue_or_end
-- Returns JSON {requeued: {pool: count}, ended: [item ids], grace: bool, slots: number of slots}; cjson writes an empty list as {}
local now = now_ms()

-- Items handled in one step; Redis serves no other client during it.
local EXPIRED_AT_ONCE = 200
-- Leases are renewed at each third of their term or earlier, so each outlives a stall of a third of its term.
local STALL_SHARE = 1 / 3
-- A caller with a long period has to miss more than one pass.
local STALL_PERIODS = 2

-- The last pass of any process. It is long ago if Redis stalled, if no process could reach it, or if its clock went
-- forward; it is in the future if the clock went back.
local last = tonumber(redis.call('GET', REAPED_MS) or now)
local gap_ms = now - last

local function is_stall(ttl_ms)
  return math.abs(gap_ms) > math.max(STALL_SHARE * ttl_ms, STALL_PERIODS * args.reap_ms)
end

-- The first write: a Redis that takes no writes takes no renewals either, and fails the pass here. Each write costs a
-- disk flush, and every process reaps, so a pass soon after another leaves it out.
if gap_ms == 0 or math.abs(gap_ms) >= args.reap_ms / 2 then redis.call('SET', REAPED_MS, now) end

-- Another run id means that Redis was away. On the first start there is no earlier run id, and nothing to grant. Where
-- the ACL forbids INFO there is no run id, and a restart counts as the stall that it is too.
local info = redis.pcall('INFO', 'server')
local run_id = type(info) == 'string' and info:match('run_id:(%w+)')
local known_run_id = run_id and redis.call('GET', RUN_ID)
if known_run_id ~= run_id then redis.call('SET', RUN_ID, run_id) end
local restarted = known_run_id and known_run_id ~= run_id
local reply = {requeued = {}, ended = {}, grace = restarted, slots = redis.call('ZCARD', SLOTS)}

-- Extend a lease, and never shorten it. After a stall it has the time that it had left at the last pass, a full term at
-- most: a full term after each stall would keep the item of a dead worker for as long as stalls come again and again. A
-- restart, and a clock that went back, give a full term, or what the lease has left by the clock of the last pass.
local function grant_grace(id, deadline, ttl_ms)
  local left_ms = math.max(deadline - math.max(now, last), ttl_ms)
  if gap_ms > 0 and not restarted then left_ms = math.max(deadline - now, math.min(deadline - last, ttl_ms)) end
  redis.call('ZADD', LEASES, now + left_ms, id)
  reply.grace = true
end

if restarted or math.abs(gap_ms) > STALL_PERIODS * args.reap_ms then
  local leases = redis.call('ZRANGE', LEASES, 0, -1, 'WITHSCORES')
  for position = 1, #leases, 2 do
    local id = leases[position]
    local ttl_ms = tonumber(redis.call('HGET', item_key(id), 'lease_ttl_ms') or args.lease_ttl_ms)
    if restarted or is_stall(ttl_ms) then grant_grace(id, tonumber(leases[position + 1]), ttl_ms) end
  end
end

-- After a step back, a dead leader of the audit would lead for as long as the step. The outbox has its own time.
if gap_ms < 0 and is_stall(args.lease_ttl_ms) then
  redis.call('DEL', AUDIT_LEADER, LARGE_AUDIT_LEADER, REFERENCES_AUDIT_LEADER, SIGMAS_AUDIT_LEADER)
end

local expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', string.format('(%.0f', now), 'LIMIT', 0, EXPIRED_AT_ONCE)
for _, id in ipairs(expired) do
  redis.call('HINCRBY', TOTALS, 'leases_expired', 1)
  local state, pool = requeue_or_end(id, now, args.max_attempts, args.error_json)
  if state == 'queued' then
    reply.requeued[pool] = (reply.requeued[pool] or 0) + 1
  else
    reply.ended[#reply.ended + 1] = id
  end
end
return cjson.encode(reply)
