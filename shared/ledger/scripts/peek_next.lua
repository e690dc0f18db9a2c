-- Tell what a slot would be given now; nothing changes.
-- ARGV: 2 JSON list of the pools this slot serves, 3 slot, 4 adapter key warm in this slot, 5 wait bound ms, 6 slot ttl ms
-- Returns spec JSON or nil
local id = choose(cjson.decode(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), now_ms())
return id and redis.call('HGET', item_key(id), 'spec')
