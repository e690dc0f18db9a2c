-- Take due messages to send; each comes again after the hold, unless it is settled before.
-- ARGV: 2 hold ms, 3 most to take
-- Returns a flat list: job, URL, attempts with this one, ...
local now = now_ms()
local out = {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', P .. 'outbox', '-inf', now, 'LIMIT', 0, tonumber(ARGV[3]))) do
  redis.call('ZADD', P .. 'outbox', now + tonumber(ARGV[2]), job)
  out[#out + 1] = job
  out[#out + 1] = redis.call('HGET', job_key(job), 'webhook')
  out[#out + 1] = tostring(redis.call('HINCRBY', job_key(job), 'webhook_attempts', 1))
end
return out
