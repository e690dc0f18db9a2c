-- Return the spec of the item that claim_next would claim now, and record that the slot merges its adapters next; claims
-- nothing.
--
-- Arguments: those of choose.lua
-- Keys: those of choose.lua, and specs, job
-- Returns the texts that make up the spec, or nil
local now = now_ms()
local id = choose(now)
if not id then return nil end
local job, lane, whole = fields(item_key(id), 'job', 'lane', 'spec')
-- The claim will cancel it instead.
if is_too_late(job, now) then return nil end
set_adapters(NEXT_ADAPTERS, args.slot, adapters_of(lane))
return spec_texts(id, whole)
