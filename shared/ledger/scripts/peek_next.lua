-- Return the spec of the item that claim_next would claim now; claims nothing.
--
-- Arguments: those of choose.lua
-- Keys: those of choose.lua, and specs, job
-- Returns the texts that make up the spec, or nil
local now = now_ms()
local id = choose(now)
-- The claim will cancel it instead.
if id and is_too_late(redis.call('HGET', item_key(id), 'job'), now) then return nil end
return id and spec_texts(id, redis.call('HGET', item_key(id), 'spec'))
