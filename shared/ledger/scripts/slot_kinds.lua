-- What the live slots are, counted in a few rows; part of the scripts that read or change slots.

-- Set the value of a slot in an index, or remove it (nil), and count the slots of each value in `counts`; return whether it
-- changed.
local function set_counted(index, counts, slot, value)
  local before = redis.call('HGET', index, slot)
  if before == (value or false) then return false end
  if before and redis.call('HINCRBY', counts, before, -1) <= 0 then redis.call('HDEL', counts, before) end
  if value then
    redis.call('HSET', index, slot, value)
    redis.call('HINCRBY', counts, value, 1)
  else
    redis.call('HDEL', index, slot)
  end
  return true
end

-- Whether a process that keeps the indexes of slots sent the slot's last heartbeat. One of an earlier version may have taken
-- over its name, and changes neither the indexes nor this field.
local function keeps_indexes(slot)
  local beat_ms, indexed_ms = redis.call('ZSCORE', SLOTS, slot), redis.call('HGET', slot_key(slot), 'indexed_ms')
  return beat_ms and indexed_ms and tonumber(beat_ms) == tonumber(indexed_ms)
end

local GIB = 2 ^ 30

-- Record the kind of a slot by its last report: an array in the order in which `parse_kind` in slot_kinds.py reads it.
-- UNHEALTHY_SLOTS has the slots whose device keeps failing or whose base weights are corrupted.
local function record_kind(slot)
  local model, state, revision, precision, engines, features, memory_bytes, reads_compact, corrupted = fields(
    slot_key(slot), 'model', 'state', 'revision', 'precision', 'engines', 'features', 'memory_bytes', 'reads_compact',
    'base_drift')
  local memory_gib = math.floor(tonumber(memory_bytes or 0) / GIB + 0.5)
  local is_corrupted = tonumber(corrupted or 0) > 0
  local kind = model and state and cjson.encode({
    model, state, revision, precision, engines, features, memory_gib, reads_compact == '1', is_corrupted,
    keeps_indexes(slot),
  })
  if not set_counted(SLOT_KINDS, KINDS, slot, kind) then return end
  if kind and (is_corrupted or state == 'faulty') then
    redis.call('ZADD', UNHEALTHY_SLOTS, 0, slot)
  else
    redis.call('ZREM', UNHEALTHY_SLOTS, slot)
  end
end

local function forget_kind(slot)
  set_counted(SLOT_KINDS, KINDS, slot, nil)
  redis.call('ZREM', UNHEALTHY_SLOTS, slot)
end
