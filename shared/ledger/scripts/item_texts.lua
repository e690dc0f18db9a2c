-- The texts of an item (spec, result, error) in both forms of storage; part of every script, after the prelude.

-- Redis stores a hash compactly (340 instead of 1,300 bytes for an item) while no value has more than 64 bytes. So an
-- item in the compact form keeps its long texts in lists of its job: `specs` has the values that all items share and then
-- those of each item, `results` a line for each item that succeeded or failed, in the order of their ends: index,
-- position of the common part in `result_parts`, own part. In the whole form, which processes of an earlier version
-- read, the item's hash holds its texts.
local function job_and_index(id) return id:match('^(.*):(%d+)$') end

local function is_whole(id) return redis.call('HEXISTS', item_key(id), 'spec') == 1 end

-- Return the texts that make up an item's spec; `whole` is the field `spec` of its hash, if it has one.
local function spec_texts(id, whole)
  if whole then return {whole} end
  local job, index = job_and_index(id)
  local texts = {redis.call('LINDEX', specs_key(job), 0)}
  texts[2] = redis.call('LINDEX', specs_key(job), index + 1) or nil
  return texts
end

-- Common parts that are compared with a new one: a job has about one for each worker and kind of adapter swap.
local PARTS_COMPARED = 64

-- Store the result or the error (field) of an item that ends, as JSON texts: its own part, and the part that other items
-- of the job are likely to have too.
local function store_outcome(id, field, own, common)
  if is_whole(id) then
    local text = own == '{}' and common or own:sub(1, -2) .. ',' .. common:sub(2)
    redis.call('HSET', item_key(id), field, text)
    return
  end
  local job, index = job_and_index(id)
  local position = redis.call('LPOS', result_parts_key(job), common, 'MAXLEN', PARTS_COMPARED)
  if not position then position = redis.call('RPUSH', result_parts_key(job), common) - 1 end
  redis.call('RPUSH', results_key(job), index .. ' ' .. position .. ' ' .. own)
end

-- Return what remains of the parameters of a canceled item: the number of steps, for the progress of its job.
local function steps_only(text)
  -- Only a member of the object equals this: inside a text of JSON, a backslash precedes each quote. A plain search, for
  -- a pattern takes 180 ms for 4 MB of prompts, in which Redis serves nobody.
  local _, position = text:find('"num_inference_steps":', 1, true)
  local steps = position and text:match('^%d+', position + 1)
  return steps and '{"num_inference_steps":' .. steps .. '}' or '{}'
end

-- Keep the parameters of a text of `specs`, its first line, and drop the inputs, which only a render needs. Of a
-- canceled item keep the number of steps only.
local function keep_parameters(job, position, state)
  local text = redis.call('LINDEX', specs_key(job), position)
  if not text then return end
  local line_break = text:find('\n', 1, true)
  if state == 'canceled' then
    redis.call('LSET', specs_key(job), position, steps_only(text))
  elseif line_break then
    redis.call('LSET', specs_key(job), position, text:sub(1, line_break - 1))
  end
end

-- Drop what no view shows of an item that ended.
local function shrink_ended_item(id, state)
  local key, job, index = item_key(id), job_and_index(id)
  redis.call('HDEL', key, 'job', 'pool', 'tenant', 'lane', 'seq', 'accepted_ms', 'boot', 'nonce', 'progress',
    'gpu_ms', 'shape')
  keep_parameters(job, index + 1, state)
  local whole = state == 'canceled' and redis.call('HGET', key, 'spec')
  if whole then redis.call('HSET', key, 'spec', steps_only(whole)) end
end

-- Return the name of an adapter key in a lane: short, because sha256 sums would make the item's hash a large one. Two
-- keys with one name would share a lane, which costs an adapter swap.
local function short_adapters(adapter_key)
  if #adapter_key <= 24 then return adapter_key end
  return '~' .. redis.sha1hex(adapter_key):sub(1, 20)
end

