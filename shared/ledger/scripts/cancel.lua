-- Cancel jobs: queued items end at once, running ones at the next renewal of their lease. An ended job does not change.
--
-- Arguments:
--   jobs     ids
--   tenant   a job of another tenant does not exist for the caller; absent for one that may cancel every job
-- Keys: job, item, specs, pending, shares, lanes, lane, done, outbox, totals
-- Returns the number of these jobs that exist
local now = now_ms()

local function cancel(job)
  local key = job_key(job)
  local items, finished_ms, tenant = fields(key, 'items', 'finished_ms', 'tenant')
  if not items or (args.tenant and tenant ~= args.tenant) then return 0 end
  if finished_ms then return 1 end
  redis.call('HSET', key, 'cancel', 1)
  for index = 0, tonumber(items) - 1 do
    local id = job .. ':' .. index
    -- The item's pool, and not its job's: it changes if the item does not fit on a device.
    local state, lane, pool = fields(item_key(id), 'state', 'lane', 'pool')
    if state == 'queued' then
      dequeue(id, pool, lane)
      move(id, job, 'queued', 'canceled', now)
    end
  end
  return 1
end

local found = 0
for _, job in ipairs(args.jobs) do found = found + cancel(job) end
return found
