-- Drop wake-up messages beyond the queued items: a cancel removes items from the queue, but not Celery's messages.
--
-- Arguments:
--   pool
--   name  of its queue of wake-ups
--   keep   how many messages beyond the queued items stay
--   limit  most messages to drop
-- Keys: wake, pending
-- Returns the number of messages dropped
local list = wake_list_key(args.name)
local surplus = redis.call('LLEN', list) - redis.call('ZCARD', pending_key(args.pool)) - args.keep
local count = math.min(surplus, args.limit)
if count <= 0 then return 0 end
-- Messages carry no id, so any of them can be dropped. Celery pops the tail, so the head is dropped.
redis.call('LTRIM', list, count, -1)
return count
