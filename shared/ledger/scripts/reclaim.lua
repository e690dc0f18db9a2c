-- A slot starts again: take back what its earlier process held, without waiting for the leases.
-- ARGV: 2 slot, 3 boot of the new process, 4 max attempts, 5 error JSON of a lost worker
-- Returns the number of items requeued
local now = now_ms()
local requeued = 0
for _, id in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
  local f = fields(item_key(id), 'slot', 'boot')
  if f[1] == ARGV[2] and f[2] ~= ARGV[3] then
    local state = give_back(id, now, tonumber(ARGV[4]), ARGV[5])
    if state == 'queued' then requeued = requeued + 1 end
  end
end
return requeued
