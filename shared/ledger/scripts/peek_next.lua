-- Return the spec of the item that claim_next would claim now; claims nothing.
--
-- Arguments: those of choose.lua
-- Keys: those of choose.lua, and specs
-- Returns the texts that make up the spec, or nil
local id = choose(now_ms())
return id and spec_texts(id, redis.call('HGET', item_key(id), 'spec'))
