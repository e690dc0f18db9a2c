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
  local is_full = redis.call('HLEN', METRICS) >= MOST_METRICS
  for field, count in pairs(batch.counts) do
    if not is_full or redis.call('HEXISTS', METRICS, field) == 1 then
      redis.call('HINCRBY', METRICS, field, string.format('%.0f', count))
    end
  end
end
