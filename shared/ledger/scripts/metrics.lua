-- What processes count by themselves, for the whole fleet; a part of the scripts that receive it.

-- Fields stay few, because the values of labels come from short lists. If a process has others, no field is added any more.
local MOST_METRICS = 5000
-- Longer than any process repeats a batch.
local BATCH_TTL_S = 86400

-- Add the counts of a batch: {boot = identity of the process, number = rises with each of its batches, counts = {field =
-- number}}. A batch whose answer was lost comes again, and its number shows it.
local function add_metrics(source, batch)
  local key = batch_key(source)
  local boot, number = (redis.call('GET', key) or ''):match('^(%S+) (%d+)$')
  if boot == batch.boot and tonumber(number) >= batch.number then return end
  redis.call('SET', key, batch.boot .. ' ' .. batch.number, 'EX', BATCH_TTL_S)
  local names = {}
  for field in pairs(batch.counts) do names[#names + 1] = field end
  if #names == 0 then return end
  local is_full = redis.call('HLEN', METRICS) >= MOST_METRICS
  -- One command for all fields: each command that writes goes to the disk.
  local sums = {}
  for position, sum in ipairs(redis.call('HMGET', METRICS, unpack(names))) do
    local field = names[position]
    if sum or not is_full then
      sums[#sums + 1], sums[#sums + 2] = field, string.format('%.0f', (sum or 0) + batch.counts[field])
    end
  end
  if #sums > 0 then redis.call('HSET', METRICS, unpack(sums)) end
end
