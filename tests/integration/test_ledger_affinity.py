"""A slot goes on with its adapters where nobody waits longer for it: between equal tenants, and in a long queue."""

import itertools

import pytest

from shared.job import AdapterRef
from shared.ledger import Ledger, keys
from shared.settings import QueueSettings

WAIT_BOUND_S = 100

_ids = itertools.count()


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(wait_bound_s=WAIT_BOUND_S), clock_ms=clock)


@pytest.fixture
def spec(item):
    def make(adapter):
        return item(adapters=(AdapterRef(path="a.safetensors", sha256=adapter, size_bytes=1, multiplier=1.0),))

    return make


@pytest.fixture
def accept(ledger, spec):
    def store(tenant, adapter, count=1, **options):
        return ledger.accept(f"job-{next(_ids)}", [spec(adapter)] * count, record={}, tenant=tenant, **options).job_id

    return store


@pytest.fixture
def claim(ledger, clock, spec):
    """Claim for a slot that has an adapter merged, a second after the claim before; return the claim."""

    def claim(slot, adapter):
        clock.advance(1)
        return ledger.claim_next(["flux2"], slot=slot, boot="boot", warm=spec(adapter).adapter_key)

    return claim


@pytest.fixture
def run_two_tenants(accept, claim):
    """Queue items of two tenants, and let a slot run an item of each; it is the turn of `a`, which was served first."""

    def run():
        for tenant, adapter in (("a", "aa"), ("b", "bb")):
            accept(tenant, adapter, 20)
        return claim("gpu-a", "aa"), claim("gpu-b", "bb")

    return run


def test_a_slot_keeps_its_adapters_while_the_tenant_whose_turn_it_is_has_as_many_items_running(
    ledger, claim, spec, run_two_tenants
):
    assert [first.spec for first in run_two_tenants()] == [spec("aa"), spec("bb")]

    peeked = ledger.peek_next(["flux2"], slot="gpu-b", warm=spec("bb").adapter_key)
    kept = claim("gpu-b", "bb")

    assert peeked == spec("bb")
    # The oldest item is of `a`, whose turn it is.
    assert (kept.spec, kept.why) == (spec("bb"), "warm")


def test_a_tenant_with_nothing_running_gets_its_turn_at_the_next_claim(accept, claim, spec, run_two_tenants):
    run_two_tenants()
    accept("c", "cc")

    assert claim("gpu-b", "bb").spec == spec("cc")


def test_a_tenant_with_more_items_running_gives_a_slot_away(claim, spec, run_two_tenants):
    run_two_tenants()
    assert claim("gpu-a2", "aa").spec == spec("aa")
    assert claim("gpu-b2", "bb").spec == spec("bb")

    # 2 of `a` run. Of `b`, without the last one of the slot, 1 runs, then 2, then 3.
    assert [claim("gpu-b", "bb").spec for _ in range(3)] == [spec("bb"), spec("bb"), spec("aa")]


def test_a_slot_whose_last_item_has_ended_follows_the_turn(ledger, claim, spec, run_two_tenants):
    _, last = run_two_tenants()
    ledger.commit(last, None)
    assert claim("gpu-b2", "bb").spec == spec("bb")

    # One of each runs, and `a` was served first.
    assert claim("gpu-b", "bb").spec == spec("aa")


def test_of_equal_tenants_the_larger_part_moves_on_once_in_8_claims_of_a_slot(ledger, claim, spec, run_two_tenants):
    first, running = run_two_tenants()
    claim("gpu-a2", "aa")
    claim("gpu-b2", "bb")
    ledger.commit(first, None)
    # 1 of `a` runs and 2 of `b`, one of which ends after each claim.
    turns = []
    for number in range(2, 12):
        claimed = claim("gpu-b", "bb")
        ledger.commit(running, None)
        running = claimed
        if claimed.spec == spec("aa"):
            turns.append(number)

    assert turns == [9]


def test_a_slot_does_not_keep_its_adapters_against_a_higher_priority(accept, claim, spec, run_two_tenants):
    run_two_tenants()
    accept("a", "aa", priority=1)

    urgent = claim("gpu-b", "bb")

    assert (urgent.spec, urgent.why) == (spec("aa"), "priority")


def test_of_overdue_items_a_slot_takes_one_with_its_adapters_that_was_accepted_soon_after_the_oldest(
    clock, accept, claim, spec
):
    accept("a", "aa", 2)
    clock.advance(0.1 * WAIT_BOUND_S)
    accept("a", "bb", 2)
    clock.advance(WAIT_BOUND_S)

    claims = [claim("gpu-b", "bb") for _ in range(3)]

    assert [(each.spec, each.why) for each in claims] == [
        (spec("bb"), "overdue"),
        (spec("bb"), "overdue"),
        (spec("aa"), "overdue"),
    ]


def test_the_oldest_overdue_item_is_claimed_once_in_8_claims_of_a_slot_with_other_adapters(clock, accept, claim, spec):
    accept("a", "aa", 2)
    accept("a", "bb", 20)
    clock.advance(WAIT_BOUND_S)

    claims = [claim("gpu-b", "bb") for _ in range(17)]

    assert [number for number, each in enumerate(claims, start=1) if each.spec == spec("aa")] == [9, 17]


@pytest.mark.parametrize(
    ("later_s", "overdue_s"),
    [
        (0.1 * WAIT_BOUND_S + 1, WAIT_BOUND_S),  # accepted too long after the oldest one
        (0.1 * WAIT_BOUND_S, WAIT_BOUND_S - 5),  # not overdue itself, 1 s before the claim
    ],
)
def test_other_overdue_items_do_not_pass_the_oldest_one(clock, accept, claim, spec, later_s, overdue_s):
    accept("a", "aa")
    clock.advance(later_s)
    accept("a", "bb")
    clock.advance(overdue_s)

    assert claim("gpu-b", "bb").spec == spec("aa")


def test_an_overdue_item_of_another_tenant_does_not_pass_the_oldest_one(clock, accept, claim, spec):
    accept("a", "aa")
    accept("b", "bb")
    clock.advance(WAIT_BOUND_S)

    assert claim("gpu-b", "bb").spec == spec("aa")


def test_a_slot_goes_on_when_the_number_of_running_items_was_lost(ledger, claim, spec, run_two_tenants):
    run_two_tenants()
    ledger.redis.hdel(keys.busy("flux2"), "b")

    assert claim("gpu-b", "bb").spec == spec("bb")
