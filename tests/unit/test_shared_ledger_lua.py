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


def test_each_script_has_its_own_definitions_only():
    scripts = lua.scripts()

    assert "local function choose(" in scripts["claim_next"]
    assert "local function spec_texts(" in scripts["peek_next"]
    assert not [name for name in ("commit", "renew", "beat") if "local function choose(" in scripts[name]]
    # `renew` needs the clock, the names of three keys, and whether a claim still owns its item.
    assert scripts["renew"].count("local function ") == 5
