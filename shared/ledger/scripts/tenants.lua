-- The jobs of each tenant, for its listing; part of the scripts that read or change them.

-- `tenant_jobs:{tenant}` is `jobs` for one tenant. TENANTS_UNTIL is the accept order up to which every job is in the index
-- of its tenant. A process of an earlier version adds jobs to JOBS alone, and leaves it where it was.
local function tenants_unindexed()
  return '(' .. (redis.call('GET', TENANTS_UNTIL) or '-inf')
end

-- Whether every job is in the index of its tenant.
local function are_tenants_indexed()
  return redis.call('ZCOUNT', JOBS, tenants_unindexed(), '+inf') == 0
end
