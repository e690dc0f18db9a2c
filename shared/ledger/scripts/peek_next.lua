-- Return the spec of the item that claim_next would claim now; changes nothing.
--
-- Arguments: those of choose.lua
-- Keys read: those of choose.lua
-- Returns the spec's JSON or nil
local id = choose(now_ms())
return id and redis.call('HGET', item_key(id), 'spec')
