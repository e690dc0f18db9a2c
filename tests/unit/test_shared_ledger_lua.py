"""Scripts are assembled from parts, without the definitions that they do not use."""

from shared.ledger import lua


def test_what_a_script_does_not_use_is_left_out():
    text = """-- A comment that names first().
local JOBS = PREFIX .. 'jobs'
local LEASES = PREFIX .. 'leases'
local LIMIT = 3

local function first(key) return redis.call('GET', key) end
local function second()
  if LIMIT > 2 then
    return first(JOBS)
  end
end
local function third() return second() end

-- Return what it found.
return second()
"""

    assert lua.without_unused(text).splitlines() == [
        "local JOBS = PREFIX .. 'jobs'",
        "local LIMIT = 3",
        "",
        "local function first(key) return redis.call('GET', key) end",
        "local function second()",
        "  if LIMIT > 2 then",
        "    return first(JOBS)",
        "  end",
        "end",
        "",
        "return second()",
    ]


def test_constants_and_the_keys_that_functions_build_stand_where_they_are_used():
    text = """local PREFIX = 'flux2:'
local JOBS = PREFIX .. 'jobs'
local FIRST, LAST = 1, 2
local LIMIT = 30
local RATIO = 2 ^ 3
local function lane_key(pool, lane) return PREFIX .. 'lane:' .. pool .. ':' .. lane end
local function due_key(id) return is_item(id) and JOBS or PREFIX .. id end
redis.call('ZADD', JOBS, LIMIT, lane_key(pool, name_of(one, other)), due_key(RATIO))
redis.call('ZCARD', lane_key(pool, lane or ''))
"""

    assert lua.without_unused(lua.inlined(text)).splitlines() == [
        "local FIRST, LAST = 1, 2",
        "local RATIO = 2 ^ 3",
        "local function due_key(id) return is_item(id) and 'flux2:jobs' or 'flux2:' .. id end",
        "redis.call('ZADD', 'flux2:jobs', 30, ('flux2:lane:' .. pool .. ':' .. (name_of(one, other))), due_key(RATIO))",
        "redis.call('ZCARD', ('flux2:lane:' .. pool .. ':' .. (lane or '')))",
    ]


def test_each_script_has_its_own_definitions_only():
    scripts = lua.scripts()

    assert "local function choose(" in scripts["claim_next"]
    assert "local function spec_texts(" in scripts["peek_next"]
    assert not [name for name in ("commit", "renew", "beat") if "local function choose(" in scripts[name]]
    # `renew` needs the clock, fields of a hash, and whether a claim still owns its item.
    assert scripts["renew"].count("local function ") == 3
