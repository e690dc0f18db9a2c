"""A claim costs the same however large the fleet is, and its indexes hold after processes that do not keep them."""

import itertools
import random
from collections import Counter

import pytest

from shared.job import AdapterRef, ItemSpec
from shared.ledger import Ledger, keys
from shared.ledger.session import to_ms
from shared.settings import QueueSettings

POOL = "flux2"
TURNS, ENTRIES = f"{keys.PREFIX}turns:{POOL}", f"{keys.PREFIX}turn_entries:{POOL}"
SHARES, BUSY, SERVED = (f"{keys.PREFIX}{name}:{POOL}" for name in ("shares", "busy", "served"))
WARM, WARM_COUNTS = f"{keys.PREFIX}warm", f"{keys.PREFIX}warm_counts"
TENANTS, STEPS = 12, 400


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(), clock_ms=clock)


@pytest.fixture
def spec(item):
    def make(adapter: str = "") -> ItemSpec:
        ref = AdapterRef(path="a.safetensors", sha256=adapter, size_bytes=1, multiplier=1.0)
        return item(adapters=(ref,) if adapter else ())

    return make


_ids = itertools.count()


def accept(ledger, spec, **options):
    return ledger.accept(f"job-{next(_ids)}", [spec], record={}, **options).job_id


def claim(ledger, slot="gpu-0", warm="base"):
    return ledger.claim_next([POOL], slot=slot, boot="boot", warm=warm)


def tenants_of_claims(ledger, count):
    claims = [claim(ledger) for _ in range(count)]
    return [ledger.redis.hget(keys.item(claimed.item_id), "tenant") for claimed in claims]


def drop_turns(ledger):
    """Leave the queue as a process of the earlier version stores it."""
    ledger.redis.delete(TURNS, ENTRIES)


def report(adapter_key):
    return {"model": POOL, "warm": adapter_key}


def heartbeat_of_the_earlier_version(ledger, slot, adapter_key):
    ledger.redis.hset(keys.slot(slot), mapping=report(adapter_key))
    ledger.redis.zadd(keys.SLOTS, {slot: ledger.now_ms()})


def test_the_next_share_is_the_best_of_all_whatever_happened_before(ledger, clock, spec):
    """Compared with a look at every share after each of many random steps."""
    chance = random.Random(1)
    claims, checked = [], 0
    for _ in range(STEPS):
        clock.ms += chance.choice([0, 1, 1000])
        step = chance.choice(["accept", "accept", "claim", "commit"])
        if step == "accept":
            accept(ledger, spec(), tenant=f"t{chance.randrange(TENANTS)}", priority=chance.choice([0, 5, 9]))
        elif step == "claim" and ledger.queue_length(POOL):
            shares = [share.split("|") for share in ledger.redis.hkeys(SHARES)]
            busy, served = ledger.redis.hgetall(BUSY), ledger.redis.hgetall(SERVED)
            ranks = {
                (priority, tenant): (int(priority), int(busy.get(tenant, 0)), int(served.get(tenant, 0)))
                for priority, tenant in shares
            }
            claims.append(claim(ledger))
            lane = ledger.redis.hget(keys.item(claims[-1].item_id), "lane").split("|")
            assert ranks[lane[0], lane[1]] == min(ranks.values())
            checked += 1
        elif step == "commit" and claims:
            ledger.commit(claims.pop(chance.randrange(len(claims))), None)

    assert checked > STEPS / 8
    assert ledger.redis.zcard(TURNS) == ledger.redis.hlen(ENTRIES) == ledger.redis.hlen(SHARES)


def test_a_queue_that_the_earlier_version_stored_is_shared_fairly_at_once(ledger, spec):
    for tenant in ("a", "a", "a", "b", "c"):
        accept(ledger, spec(), tenant=tenant)
    drop_turns(ledger)

    assert sorted(tenants_of_claims(ledger, 3)) == ["a", "b", "c"]


def test_a_tenant_whose_first_item_an_earlier_version_accepted_gets_its_turn(ledger, spec):
    for tenant in ("a", "a", "b"):
        accept(ledger, spec(), tenant=tenant)
    entry = ledger.redis.hget(ENTRIES, "5|b")
    ledger.redis.zrem(TURNS, entry)
    ledger.redis.hdel(ENTRIES, "5|b")

    assert sorted(tenants_of_claims(ledger, 2)) == ["a", "b"]


def test_an_index_that_is_wrong_but_as_large_as_it_should_be_corrects_itself(ledger, spec):
    for tenant in ("a", "a", "a", "a", "a", "b"):
        accept(ledger, spec(), tenant=tenant)
    # An earlier version claimed the only item of one tenant and accepted the first item of another.
    for key in (TURNS, ENTRIES):
        ledger.redis.delete(key)
    ledger.redis.zadd(TURNS, {"5|000000|00000000000000|gone": 0, ledger_entry("a"): 0})
    ledger.redis.hset(ENTRIES, mapping={"5|gone": "5|000000|00000000000000|gone", "5|a": ledger_entry("a")})

    # The first claim may serve `a`; each claim then checks two shares of two.
    assert "b" in tenants_of_claims(ledger, 3)


def ledger_entry(tenant):
    return f"5|000000|00000000000000|{tenant}"


def test_running_items_that_an_earlier_version_ended_give_a_tenant_its_turn_back(ledger, clock, spec):
    for tenant in ("a", "a", "a", "a", "b", "b", "b", "b"):
        accept(ledger, spec(), tenant=tenant)
    claims = [claim(ledger) for _ in range(4)]
    first = ledger.redis.hget(keys.item(claims[0].item_id), "tenant")
    # Its two running items ended, and only the hash of running items says so.
    ledger.redis.hdel(BUSY, first)

    # One claim may still go to the other tenant, and checks both.
    assert tenants_of_claims(ledger, 3).count(first) >= 2


def test_an_index_whose_every_entry_is_wrong_is_built_again(ledger, spec):
    accept(ledger, spec(), tenant="a")
    drop_turns(ledger)
    ledger.redis.zadd(TURNS, {ledger_entry("gone"): 0})
    ledger.redis.hset(ENTRIES, "5|gone", ledger_entry("gone"))

    assert tenants_of_claims(ledger, 1) == ["a"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda redis: redis.delete(ENTRIES),
        lambda redis: redis.zadd(TURNS, {ledger_entry(tenant): 0 for tenant in ("", "ghost")}),
        lambda redis: (redis.zrem(TURNS, ledger_entry("b")), redis.zadd(TURNS, {"0|000000|00000000000000|ghost": 0})),
        lambda redis: (redis.zrem(TURNS, ledger_entry("b")), redis.zadd(TURNS, {"5|000000|00000000000000|": 0})),
        lambda redis: redis.zadd(TURNS, {f"0|000000|00000000000000|ghost{number}": 0 for number in range(50)}),
        lambda redis: redis.delete(SHARES),
        lambda redis: redis.delete(SHARES, TURNS, ENTRIES),
    ],
)
def test_an_index_of_which_a_part_is_lost_or_foreign_never_keeps_a_claim_from_ending(
    redis_url, redis_client, clock, spec, damage
):
    # A claim that never ends blocks Redis; the client of this test gives up on it.
    ledger = Ledger.connect(redis_url, QueueSettings(), timeout_s=10)
    accepted = {accept(ledger, spec(), tenant=tenant) for tenant in ("a", "b", "b")}
    # The head of the turns is wrong too.
    redis_client.hset(BUSY, mapping={"a": 3, "b": 2})
    damage(redis_client)

    assert {claim(ledger).job_id for _ in accepted} == accepted
    assert redis_client.hlen(SHARES) == 0


def test_adapters_that_a_slot_of_the_earlier_version_has_warm_are_left_to_it(ledger, spec):
    heartbeat_of_the_earlier_version(ledger, "gpu-1", spec("aa").adapter_key)
    accept(ledger, spec())
    claim(ledger)

    left = accept(ledger, spec("aa"))
    free = accept(ledger, spec("bb"))

    assert [claim(ledger).job_id for _ in range(2)] == [free, left]


def test_an_adapter_is_free_again_when_its_slot_has_another_one_or_stops(ledger, spec):
    for stop in (lambda: ledger.workers.beat("gpu-1", report("base")), lambda: ledger.workers.remove("gpu-1")):
        ledger.workers.beat("gpu-1", report(spec("aa").adapter_key))
        stop()
        oldest = accept(ledger, spec("aa"))
        other = accept(ledger, spec("bb"))

        assert [claim(ledger).job_id for _ in range(2)] == [oldest, other]


def test_a_slots_own_earlier_adapter_does_not_count_as_warm_elsewhere(ledger, spec):
    ledger.workers.beat("gpu-0", report(spec("aa").adapter_key))
    oldest = accept(ledger, spec("aa"))
    accept(ledger, spec("bb"))

    assert claim(ledger, warm="another").job_id == oldest


def test_the_counts_of_warm_adapters_follow_slots_that_an_earlier_version_removed(ledger, spec):
    key = spec("aa").adapter_key
    for slot in ("gpu-1", "gpu-2"):
        ledger.workers.beat(slot, report(key))
    ledger.redis.zrem(keys.SLOTS, "gpu-1")

    # One claim of so many checks each index.
    for _ in range(6):
        accept(ledger, spec())
        claim(ledger)

    # "base" is what the claiming slot merges next.
    assert ledger.redis.hgetall(WARM_COUNTS) == {key: "1", "base": "1"}
    assert ledger.redis.hgetall(WARM) == {"gpu-2": key}


def test_the_items_of_a_slots_earlier_process_are_found_even_if_that_process_listed_none(ledger, spec):
    for _ in range(3):
        accept(ledger, spec())
    mine = [claim(ledger, "gpu-0") for _ in range(2)]
    claim(ledger, "gpu-1")
    ledger.workers.beat("gpu-0", report("base"))
    ledger.redis.delete(keys.claims("gpu-0"))

    assert ledger.reclaim(slot="gpu-0", boot="next") == len(mine)
    assert ledger.queue_length(POOL) == len(mine)


@pytest.mark.parametrize("left", [{"slot": "gpu-1", "nonce": "another"}, {"state": "failed"}])
def test_a_list_of_claims_forgets_items_that_an_earlier_version_ended(ledger, spec, left):
    for _ in range(2):
        accept(ledger, spec())
    first = claim(ledger)
    ledger.redis.hset(keys.item(first.item_id), mapping=left)

    second = claim(ledger)

    listed = [field for field in ledger.redis.hkeys(keys.claims("gpu-0")) if ":" in field]
    assert listed == [second.item_id]


def test_a_copy_of_a_claim_that_arrives_late_claims_nothing(ledger, spec):
    for _ in range(3):
        accept(ledger, spec())
    late = Ledger(ledger.redis, QueueSettings(), clock_ms=ledger.now_ms)
    done = claim(ledger)
    ledger.commit(done, None)
    arguments = late._claims.preference([POOL], "gpu-0", "base") | {"boot": "boot", "lease_ttl_ms": to_ms(15)}

    # The network sends the first call once more, after its item has ended.
    assert late._session.run("claim_next", **arguments, number=1) == 1

    assert ledger.queue_length(POOL) == 2
    # Another client of the same process goes on after the last number.
    assert claim(late) is not None


@pytest.mark.parametrize("warm_elsewhere", [False, True])
def test_a_claim_runs_as_many_commands_in_a_large_fleet_as_in_a_small_one(redis_client, clock, spec, warm_elsewhere):
    wide = Ledger(redis_client, QueueSettings(cap=100_000), clock_ms=clock)

    def commands_of_a_claim(size):
        redis_client.flushall()
        for number in range(size):
            accept(wide, spec(f"{number:02}"), tenant=f"t{number}")
            wide.workers.beat(f"gpu-{number}", report(spec(f"{number:02}" if warm_elsewhere else "ff").adapter_key))
        for number in range(size // 2):
            claim(wide, f"gpu-{number}")
        redis_client.config_resetstat()
        claimed = claim(wide, f"gpu-{size // 2}")
        calls = Counter({name: row["calls"] for name, row in redis_client.info("commandstats").items()})
        wide.commit(claimed, None)
        return sum(calls.values())

    small = commands_of_a_claim(20)
    # An entry of an index that a claim checks may be right or wrong, which takes up to ten commands.
    assert commands_of_a_claim(200) <= small + 10


def test_a_heartbeat_that_repeats_the_last_one_writes_little(ledger, clock, slot_report):
    def writes(report):
        clock.advance(3)
        before = ledger.redis.info("persistence")["rdb_changes_since_last_save"]
        ledger.workers.beat("gpu-0", report)
        return ledger.redis.info("persistence")["rdb_changes_since_last_save"] - before

    writes(slot_report(engines="exact", features="large"))
    repeated = writes(slot_report(engines="exact", features="large"))
    changed = writes(slot_report(engines="exact", features="large", state="busy", item="job:0"))

    # Its time as a score, as that of the large pools and of the indexes, and as the expiry of the report; then two
    # fields more, and four of the count of kinds.
    assert (repeated, changed) == (4, 10)
    assert [ledger.redis.hget(keys.slot("gpu-0"), field) for field in ("state", "item", "model")] == [
        "busy",
        "job:0",
        "flux2",
    ]


def test_the_items_of_a_job_are_queued_together_in_their_order(ledger, item):
    seeds = list(range(1201))
    specs = [item(seed=seed, adapters=()) for seed in seeds]
    ledger.redis.config_resetstat()

    ledger.accept("large", specs, record={})

    calls = {
        name: ledger.redis.info("commandstats")[f"cmdstat_{name}"]["calls"] for name in ("zadd", "rpush", "hincrby")
    }
    # A few for each 500 items, and not for each item.
    assert all(number < 20 for number in calls.values()), calls
    assert ledger.queue_length(POOL) == int(ledger.redis.hget(SHARES, "5|default")) == len(seeds)
    assert [shown.spec.seed for shown in ledger.job("large").items] == seeds
    claimed = [claim(ledger) for _ in seeds[:3]]
    assert [(each.index, each.spec.seed) for each in claimed] == [(0, 0), (1, 1), (2, 2)]
    members = ledger.redis.zrange(f"{keys.PREFIX}pending:{POOL}", 0, -1)
    assert members == [f"large:{index}" for index in seeds[3:]]
