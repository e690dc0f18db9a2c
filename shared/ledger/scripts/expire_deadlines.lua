-- Cancel the queued items of jobs whose deadline has passed; running ones go on.
--
-- Arguments: none
-- Keys: deadlines, totals, job, item, specs, pending, shares, lanes, lane, done, outbox
-- Returns {items canceled, 1 if another step is needed, else 0}
local now = now_ms()

-- Jobs and items examined in one step; Redis serves no other client during it.
local JOBS_AT_ONCE, ITEMS_AT_ONCE = 100, 1000
-- A running item may return to the queue: a process of an earlier version does not look at deadlines.
local RECHECK_MS = 5000

local canceled, examined = 0, 0

local function cancel_queued(job, items)
  for index = 0, items - 1 do
    local id = job .. ':' .. index
    local state, lane, pool = fields(item_key(id), 'state', 'lane', 'pool')
    if state == 'queued' then
      cancel_late(id, job, pool, lane, now)
      canceled = canceled + 1
    end
  end
  examined = examined + items
end

local jobs = redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, JOBS_AT_ONCE)
for position, job in ipairs(jobs) do
  local items, queued, finished_ms = fields(job_key(job), 'items', 'queued', 'finished_ms')
  if not items or finished_ms then
    redis.call('ZREM', DEADLINES, job)
  else
    redis.call('ZADD', DEADLINES, now + RECHECK_MS, job)
    -- The end of the job removes it from the deadlines.
    if tonumber(queued) > 0 then cancel_queued(job, tonumber(items)) end
    if examined >= ITEMS_AT_ONCE and position < #jobs then return {canceled, 1} end
  end
end
return {canceled, #jobs == JOBS_AT_ONCE and 1 or 0}
