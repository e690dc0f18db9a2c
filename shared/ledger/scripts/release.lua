-- Hand a running item back. 'drain' gives the attempt back; any other reason counts it.
-- ARGV: 2 item id, 3 fence, 4 reason, 5 max attempts, 6 error JSON, kept if this was the last attempt
-- Returns {'queued'|'failed'|'canceled'|'stale', pool}
local now = now_ms()
local id = ARGV[2]
if not owned(id, ARGV[3]) then return {'stale', ''} end
if ARGV[4] == 'drain' then redis.call('HINCRBY', item_key(id), 'attempt', -1) end
local state, pool = give_back(id, now, tonumber(ARGV[5]), ARGV[6])
return {state, pool}
