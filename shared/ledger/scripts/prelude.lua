-- The start of every script: arguments, clock and key names.
--
-- A script gets its arguments as one JSON object in ARGV[1]. An argument that is not set is absent, never null: cjson
-- decodes null to a light userdata, which Lua takes for true. Numbers decode to doubles, so only counts, fences and
-- times in ms travel as numbers. Item specs, records and results travel as JSON text inside a JSON string and are
-- stored byte for byte: decoding them here would round a seed above 2^53 and rewrite floats.
--
-- Keys are built here instead of being declared in KEYS: most are known only after a read. Redis Cluster is therefore
-- not supported. docs/reference/ledger.md lists all keys.
--
-- A `nil` reply of Redis is `false` in Lua. Numbers that Lua hands to Redis are whole, so they are stored without a
-- fraction or an exponent.
local args = cjson.decode(ARGV[1])

local PREFIX = 'flux2:'
local JOBS = PREFIX .. 'jobs'
local SWEEPS = PREFIX .. 'sweeps'
local SEQUENCE = PREFIX .. 'seq'
local LEASES = PREFIX .. 'leases'
local DONE = PREFIX .. 'done'
local SLOTS = PREFIX .. 'slots'
local SLOT_NAMES = PREFIX .. 'slot_names'
local SLOTS_MISSING = PREFIX .. 'slots_missing'
local SLOT_KINDS = PREFIX .. 'slot_kinds'
local KINDS = PREFIX .. 'kinds'
local UNHEALTHY_SLOTS = PREFIX .. 'unhealthy_slots'
local WARM = PREFIX .. 'warm'
local NEXT_ADAPTERS = PREFIX .. 'next_adapters'
local WARM_COUNTS = PREFIX .. 'warm_counts'
local OUTBOX = PREFIX .. 'outbox'
local ITEM_OUTBOX = PREFIX .. 'item_outbox'
local STORAGE_OUTAGE = PREFIX .. 'storage_outage'
local COMPACT_FROM = PREFIX .. 'compact_from'
local TENANTS_UNTIL = PREFIX .. 'tenants_until'
local USAGE_TOTALS = PREFIX .. 'usage_totals'
local RUN_ID = PREFIX .. 'run_id'
local REAPED_MS = PREFIX .. 'reaped_ms'
local DEADLINES = PREFIX .. 'deadlines'
local TOTALS = PREFIX .. 'totals'
local METRICS = PREFIX .. 'metrics'
local AUDIT_LEADER = PREFIX .. 'audit'
local LARGE_AUDIT_LEADER = PREFIX .. 'large_audit'
local REFERENCES_AUDIT_LEADER = PREFIX .. 'references_audit'
local SIGMAS_AUDIT_LEADER = PREFIX .. 'sigmas_audit'

local function job_key(job) return PREFIX .. 'job:' .. job end
local function sweep_key(sweep) return PREFIX .. 'sweep:' .. sweep end
local function item_key(id) return PREFIX .. 'item:' .. id end
local function specs_key(job) return PREFIX .. 'specs:' .. job end
local function results_key(job) return PREFIX .. 'results:' .. job end
local function result_parts_key(job) return PREFIX .. 'result_parts:' .. job end
local function tenant_jobs_key(tenant) return PREFIX .. 'tenant_jobs:' .. tenant end
local function tenant_sweeps_key(tenant) return PREFIX .. 'tenant_sweeps:' .. tenant end
local function usage_key(day, tenant) return PREFIX .. 'usage:' .. day .. ':' .. tenant end
local function usage_tenants_key(day) return PREFIX .. 'usage_tenants:' .. day end
local function images_key(period) return PREFIX .. 'images:' .. period end
local function slot_key(slot) return PREFIX .. 'slot:' .. slot end
local function claims_key(slot) return PREFIX .. 'claims:' .. slot end
local function batch_key(source) return PREFIX .. 'metrics_batch:' .. source end
local function idempotency_key(tenant, key) return PREFIX .. 'idem:' .. tenant .. ':' .. key end
local function pending_key(pool) return PREFIX .. 'pending:' .. pool end
local function shares_key(pool) return PREFIX .. 'shares:' .. pool end
local function lanes_key(pool, share) return PREFIX .. 'lanes:' .. pool .. ':' .. share end
local function lane_key(pool, lane) return PREFIX .. 'lane:' .. pool .. ':' .. lane end
local function busy_key(pool) return PREFIX .. 'busy:' .. pool end
local function served_key(pool) return PREFIX .. 'served:' .. pool end
local function turns_key(pool) return PREFIX .. 'turns:' .. pool end
local function turn_entries_key(pool) return PREFIX .. 'turn_entries:' .. pool end
local function memory_key(pool) return PREFIX .. 'memory:' .. pool end
local function pace_key(pool) return PREFIX .. 'pace:' .. pool end
local function times_key(model) return PREFIX .. 'times:' .. model end
local function wake_list_key(name) return PREFIX .. 'wake.' .. name end

-- Return the time in ms since the epoch, by Redis' clock, so that differences between hosts do not matter. Tests pass
-- a time instead.
local function now_ms()
  if args.now_ms then return args.now_ms end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Return the named fields of a hash as multiple values.
local function fields(key, ...)
  return unpack(redis.call('HMGET', key, ...))
end

-- Return a hash as a table.
local function read_hash(key)
  local values, flat = {}, redis.call('HGETALL', key)
  for position = 1, #flat, 2 do values[flat[position]] = flat[position + 1] end
  return values
end

