-- Cancel a job: queued items end at once, running ones learn of it at their next renewal.
-- ARGV: 2 job id
-- Returns 1, or 0 where no such job exists; terminal jobs are left as they are
local now = now_ms()
local job = ARGV[2]
local key = job_key(job)
local f = fields(key, 'pool', 'items', 'finished_ms')
if not f[1] then return 0 end
if f[3] then return 1 end
redis.call('HSET', key, 'cancel', 1)
for index = 0, tonumber(f[2]) - 1 do
  local id = job .. ':' .. index
  local i = fields(item_key(id), 'state', 'lane')
  if i[1] == 'queued' then
    dequeue(id, f[1], i[2])
    move(id, job, 'queued', 'canceled', now)
  end
end
return 1
