-- Return webhook messages that are due, and reserve them: none is due again before the reservation ends.
--
-- Arguments:
--   reserve_ms  length of the reservation
--   limit       most messages to return
-- Keys: outbox, job
-- Returns a flat list: job id, URL, attempts including this one, job id, ...
local now = now_ms()
local reply = {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', OUTBOX, '-inf', now, 'LIMIT', 0, args.limit)) do
  redis.call('ZADD', OUTBOX, now + args.reserve_ms, job)
  reply[#reply + 1] = job
  reply[#reply + 1] = redis.call('HGET', job_key(job), 'webhook')
  reply[#reply + 1] = redis.call('HINCRBY', job_key(job), 'webhook_attempts', 1)
end
return reply
