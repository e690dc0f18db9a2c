-- Drop wake-up messages beyond the queued items: canceling takes items out of the queue, and not Celery's messages.
-- They carry no id, so any may go; Celery takes them from the tail, and here the head goes.
-- ARGV: 2 pool, 3 spare ones to keep, 4 most to drop
-- Returns the number dropped
local list = P .. 'wake.' .. ARGV[2]
local spare = redis.call('LLEN', list) - redis.call('ZCARD', P .. 'pending:' .. ARGV[2]) - tonumber(ARGV[3])
local count = math.min(spare, tonumber(ARGV[4]))
if count <= 0 then return 0 end
redis.call('LTRIM', list, count, -1)
return count
