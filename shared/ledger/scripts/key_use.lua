-- What an API key has queued and has submitted today; part of accept.lua.
--
-- `key_day:{key}:{day}` counts what was accepted in a day of Redis' clock, by UTC. The queued items of a key are counted
-- from its jobs, because a worker of an earlier version would not maintain a counter: `key_jobs:{key}` holds the jobs that
-- may have queued items, and `key_load:{key}` an upper bound, so that most calls count nothing. The bound includes running
-- items, which may return to the queue.
-- A day's counts stay until nobody asks for them.
local DAY_KEPT_S = 2 * 86400
-- Reading a job takes 4 us; counts of one key take at most a fiftieth of Redis' time.
local JOBS_PER_MS, LONGEST_PAUSE_MS = 5, 5000

local function key_jobs_key(id) return PREFIX .. 'key_jobs:' .. id end
local function key_load_key(id) return PREFIX .. 'key_load:' .. id end
local function key_day_key(id, now) return PREFIX .. 'key_day:' .. id .. ':' .. day_of(now) end

local function count_queued(id, now)
  local queued, started, jobs = 0, 0, redis.call('SMEMBERS', key_jobs_key(id))
  for _, job in ipairs(jobs) do
    local waiting, running, finished_ms = fields(job_key(job), 'queued', 'running', 'finished_ms')
    if not waiting or finished_ms then
      redis.call('SREM', key_jobs_key(id), job)
    else
      queued, started = queued + tonumber(waiting), started + tonumber(running)
    end
  end
  local recount_ms = now + math.floor(#jobs / JOBS_PER_MS)
  redis.call('HSET', key_load_key(id), 'bound', queued + started, 'queued', queued, 'recount_ms', recount_ms)
  return queued
end

-- Return the queued items of a key: exactly, unless there is room in any case or they were counted a moment ago.
local function queued_by_key(key, asked, now)
  local bound, queued, recount_ms = fields(key_load_key(key.id), 'bound', 'queued', 'recount_ms')
  bound, recount_ms = tonumber(bound or 0), tonumber(recount_ms or 0)
  if bound + asked <= key.queued_items then return bound end
  -- Far in the future if the clock went back.
  if now < recount_ms and recount_ms - now < LONGEST_PAUSE_MS then
    -- An earlier version counts without the field.
    return tonumber(queued or bound)
  end
  return count_queued(key.id, now)
end

-- Return {limit, used, asked, ms until the day ends} for a limit that new items exceed; nil if they exceed none.
local function exceeded_limit(key, items, pixel_steps, now)
  local left_ms = DAY_MS - now % DAY_MS
  local used_items, used_steps = fields(key_day_key(key.id, now), 'items', 'pixel_steps')
  local today = {items_per_day = {used_items, items}, pixel_steps_per_day = {used_steps, pixel_steps}}
  for _, name in ipairs({'items_per_day', 'pixel_steps_per_day'}) do
    local used, asked = tonumber(today[name][1] or 0), today[name][2]
    if key[name] and used + asked > key[name] then
      return {name, string.format('%.0f', used), string.format('%.0f', asked), left_ms}
    end
  end
  if not key.queued_items then return end
  local queued = queued_by_key(key, items, now)
  if queued + items > key.queued_items then return {'queued_items', queued, items, left_ms} end
end

local function count_use(key, jobs, items, pixel_steps, now)
  local day = key_day_key(key.id, now)
  redis.call('HINCRBY', day, 'items', items)
  redis.call('HINCRBY', day, 'pixel_steps', string.format('%.0f', pixel_steps))
  redis.call('EXPIRE', day, DAY_KEPT_S)
  if not key.queued_items then return end
  local load = key_load_key(key.id)
  redis.call('HINCRBY', load, 'bound', items)
  if redis.call('HEXISTS', load, 'queued') == 1 then redis.call('HINCRBY', load, 'queued', items) end
  for _, job in ipairs(jobs) do redis.call('SADD', key_jobs_key(key.id), job.id) end
end

