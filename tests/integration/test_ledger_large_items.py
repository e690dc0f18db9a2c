"""Items that do not fit on a device: the live slots with the most memory try them, and no such item is ever stuck."""

import itertools
import logging

import pytest

from shared.caretaker import Caretaker
from shared.celery_app import make_celery
from shared.job import ItemError, State, pools
from shared.ledger import Ledger, keys, lua
from shared.ledger.workers import SLOT_TTL_MS
from shared.settings import QueueSettings

SMALL, BIG = "small-gpu", "big-gpu"
GIB = {SMALL: 24, BIG: 80}
FULL = ItemError(code="out_of_memory", message="full, and no attempt is left", retryable=False)
ALONE = ItemError(code="out_of_memory", message="full, and no worker has more", retryable=False)
LARGE = "flux2+large"


@pytest.fixture
def options():
    return QueueSettings(lease_ttl_s=30, max_attempts=3, cap=50)


@pytest.fixture
def ledger(redis_client, options, clock):
    return Ledger(redis_client, options, clock_ms=clock)


_ids = itertools.count()


@pytest.fixture
def accept(ledger, item):
    def accept(*specs, **settings):
        return ledger.accept(f"job-{next(_ids)}", specs or [item()], record={}, **settings).job_id

    return accept


def beat(ledger, slot, *, gib=None, engines="exact", features="merged,large", state="ready", **fields):
    memory = GIB[slot] if gib is None else gib
    report = {"model": "flux2", "state": state, "device": "cuda:0", "revision": "r", "precision": "bf16"}
    report |= {"engines": engines, "features": features, "warm": "base", "item": "", "base_drift": "0"}
    ledger.workers.beat(slot, {**report, "memory_bytes": str(memory * 2**30), **fields})


def claim(ledger, slot, *, engines=("exact",), features=("merged", "large"), boot="boot"):
    names = pools("flux2", engines, features)
    expected = ledger.peek_next(names, slot=slot, warm="base")
    claimed = ledger.claim_next(names, slot=slot, boot=boot, warm="base")
    assert expected == (claimed and claimed.spec)
    return claimed


def overflow(ledger, claimed, slot, *, gib=None):
    """Report that the claimed item did not fit on the slot's device."""
    memory = GIB[slot] if gib is None else gib
    return ledger.release_too_large(claimed, memory_bytes=memory * 2**30, error=FULL, too_large=ALONE)


def moved(ledger, accept, **settings):
    """Queue an item, let the small slot find that it does not fit, and return its job."""
    job_id = accept(**settings)
    assert overflow(ledger, claim(ledger, SMALL), SMALL) == "queued"
    return job_id


def queue_keys(ledger):
    """Kinds of keys that must not exist once nothing is queued and nothing runs."""
    names = {name.removeprefix(keys.PREFIX).split(":")[0] for name in ledger.redis.scan_iter(f"{keys.PREFIX}*")}
    return names & {"pending", "shares", "lanes", "lane", "leases", "busy"}


def state(ledger, job_id):
    return ledger.job(job_id).items[0].state


@pytest.fixture
def fleet(ledger):
    """A small and a big slot, both alive."""
    beat(ledger, SMALL)
    beat(ledger, BIG)


def test_an_item_that_does_not_fit_on_the_small_slot_is_rendered_by_the_big_one(ledger, accept, fleet, make_result):
    job_id = accept()
    first = claim(ledger, SMALL)

    assert overflow(ledger, first, SMALL) == "queued"

    assert (first.pool, ledger.queue_length("flux2"), ledger.queue_length(LARGE)) == ("flux2", 0, 1)
    assert claim(ledger, SMALL) is None
    second = claim(ledger, BIG)
    assert (second.item_id, second.pool, second.fence, second.attempt) == (first.item_id, LARGE, 2, 2)
    assert ledger.commit(first, make_result()) == "stale"
    assert ledger.commit(second, make_result()) == "committed"
    job = ledger.job(job_id)
    assert (job.state, job.items[0].attempt, job.items[0].error) == (State.SUCCEEDED, 2, None)
    assert queue_keys(ledger) == set()


@pytest.mark.parametrize(
    "other",
    [
        None,
        {"gib": 24},
        {"gib": 20},
        {"gib": 80, "model": "flux2_klein_4b"},
        {"gib": 80, "engines": "fast"},
        {"gib": 80, "features": "merged"},
        {"gib": 80, "state": "faulty"},
    ],
    ids=["alone", "equal", "smaller", "another model", "another engine", "an earlier version", "faulty"],
)
def test_an_item_fails_for_good_if_no_live_slot_that_offers_its_pool_has_more_memory(ledger, accept, other):
    beat(ledger, SMALL)
    if other is not None:
        beat(ledger, "other", **other)
    job_id = accept()

    assert overflow(ledger, claim(ledger, SMALL), SMALL) == "failed"

    job = ledger.job(job_id)
    assert (job.state, job.items[0].error) == (State.FAILED, ALONE)
    assert ledger.redis.zcard(keys.LEASES) == 0


def test_the_last_attempt_fails_although_a_bigger_slot_lives(redis_client, clock, item, options):
    ledger = Ledger(redis_client, options.model_copy(update={"max_attempts": 1}), clock_ms=clock)
    beat(ledger, SMALL)
    beat(ledger, BIG)
    ledger.accept("job", [item()], record={})

    assert overflow(ledger, claim(ledger, SMALL), SMALL) == "failed"

    assert ledger.job("job").items[0].error == FULL


def test_an_old_claim_moves_nothing(ledger, accept, fleet, clock, make_result):
    accept()
    late = claim(ledger, SMALL)
    ledger.release(late, "drain")
    current = claim(ledger, BIG)

    assert overflow(ledger, late, SMALL) == "stale"
    assert ledger.commit(current, make_result()) == "committed"


@pytest.mark.parametrize("death", ["silent", "stopped", "faulty", "earlier version"])
def test_after_the_big_slot_has_gone_the_small_one_takes_the_item_and_fails_it_for_good(
    ledger, accept, fleet, clock, death
):
    job_id = moved(ledger, accept)
    if death == "silent":
        for _ in range(3):
            clock.advance(SLOT_TTL_MS / 2000)
            beat(ledger, SMALL)
    elif death == "stopped":
        ledger.workers.remove(BIG)
    elif death == "faulty":
        beat(ledger, BIG, state="faulty")
    else:
        # Its heartbeats do not know the field `large_pools`, which stays in the hash until that expires.
        clock.advance(1)
        ledger.redis.zadd(keys.SLOTS, {BIG: clock()})

    second = claim(ledger, SMALL)

    assert (second.attempt, second.pool) == (2, LARGE)
    assert overflow(ledger, second, SMALL) == "failed"
    assert ledger.job(job_id).items[0].error == ALONE


def test_a_big_slot_that_comes_while_the_item_waits_takes_it(ledger, accept, fleet):
    moved(ledger, accept)
    beat(ledger, "huge-gpu", gib=141)

    assert claim(ledger, BIG) is None
    assert overflow(ledger, claim(ledger, "huge-gpu"), "huge-gpu", gib=141) == "failed"


def test_an_item_that_does_not_fit_on_the_big_slot_either_goes_on_to_a_bigger_one(ledger, accept, fleet):
    moved(ledger, accept)
    second = claim(ledger, BIG)
    beat(ledger, "huge-gpu", gib=141)

    assert overflow(ledger, second, BIG) == "queued"

    assert claim(ledger, BIG) is None
    assert claim(ledger, "huge-gpu").attempt == 3


def test_a_slot_on_a_cpu_takes_a_large_item_when_no_other_is_left(ledger, accept, fleet):
    moved(ledger, accept)
    beat(ledger, "cpu", gib=0)
    assert claim(ledger, "cpu") is None
    ledger.workers.remove(BIG)
    ledger.workers.remove(SMALL)

    assert claim(ledger, "cpu").attempt == 2


def test_a_large_item_requires_the_rest_of_its_pool_too(ledger, item, accept, fleet):
    toolkit = {"engines": "exact,ai-toolkit"}
    beat(ledger, "toolkit-small", gib=24, **toolkit)
    beat(ledger, "toolkit-middle", gib=48, **toolkit)
    accept(item(engine="ai-toolkit"))
    first = claim(ledger, "toolkit-small", engines=("exact", "ai-toolkit"))

    assert overflow(ledger, first, "toolkit-small", gib=24) == "queued"

    # The big slot has more memory, and not this engine.
    assert claim(ledger, BIG) is None
    assert claim(ledger, "toolkit-middle", engines=("exact", "ai-toolkit")).pool == "flux2+ai-toolkit+large"


def test_a_slot_that_serves_another_model_under_its_old_name_keeps_nobody_from_large_items(ledger, accept, fleet):
    moved(ledger, accept)
    beat(ledger, BIG, model="flux2_klein_4b")

    assert claim(ledger, SMALL).attempt == 2


def test_while_live_slots_may_be_missing_the_small_slot_waits(ledger, accept, fleet, clock):
    moved(ledger, accept)
    # No heartbeat of any slot came for longer than a slot lives: Redis stalled.
    clock.advance(2 * SLOT_TTL_MS / 1000)
    beat(ledger, SMALL)

    assert claim(ledger, SMALL) is None
    beat(ledger, BIG)
    assert claim(ledger, BIG).attempt == 2


def test_an_item_that_overflows_while_live_slots_may_be_missing_is_not_failed(ledger, accept, fleet, clock):
    job_id = accept()
    claimed = claim(ledger, SMALL)
    clock.advance(2 * SLOT_TTL_MS / 1000)
    beat(ledger, SMALL)

    assert overflow(ledger, claimed, SMALL) == "queued"
    assert state(ledger, job_id) is State.QUEUED


def test_a_cancel_ends_an_item_that_waits_for_a_bigger_slot(ledger, accept, fleet):
    job_id = moved(ledger, accept)

    assert ledger.cancel(job_id)

    job = ledger.job(job_id)
    assert (job.state, state(ledger, job_id)) == (State.CANCELED, State.CANCELED)
    assert claim(ledger, BIG) is None
    assert ledger.queue_length(LARGE) == 0
    assert queue_keys(ledger) == set()


def test_a_cancel_of_a_running_item_wins_over_the_move(ledger, accept, fleet):
    job_id = accept()
    claimed = claim(ledger, SMALL)
    ledger.cancel(job_id)

    assert overflow(ledger, claimed, SMALL) == "canceled"
    assert ledger.job(job_id).state is State.CANCELED


def test_the_cancel_of_an_earlier_version_blocks_no_other_large_item(ledger, accept, fleet, clock):
    canceled, waiting = accept(tenant="one"), accept(tenant="two")
    for _ in range(2):
        assert overflow(ledger, claim(ledger, SMALL), SMALL) == "queued"
    # Its script looks for every item in the pool of the job.
    script = lua.scripts()["cancel"].replace(
        "state, lane, pool = fields(('flux2:item:' .. id), 'state', 'lane', 'pool')",
        "state, lane = fields('flux2:item:' .. id, 'state', 'lane')\n  local pool = redis.call('HGET', key, 'pool')",
    )
    assert "local pool = redis.call" in script
    ledger.redis.eval(script, 0, f'{{"jobs": ["{canceled}"], "now_ms": {clock()}}}')
    assert (state(ledger, canceled), ledger.queue_length(LARGE)) == (State.CANCELED, 2)
    clock.advance(4000)  # past the wait bound
    beat(ledger, SMALL)
    beat(ledger, BIG)

    assert claim(ledger, BIG).job_id == waiting
    assert claim(ledger, BIG) is None
    assert ledger.queue_length(LARGE) == 0
    assert state(ledger, canceled) is State.CANCELED


def test_a_worker_of_an_earlier_version_claims_no_large_item(ledger, accept, fleet):
    moved(ledger, accept)
    ledger.workers.beat("old-gpu", {"model": "flux2", "engines": "exact,ai-toolkit", "features": "merged"})

    assert claim(ledger, "old-gpu", engines=("exact", "ai-toolkit"), features=("merged",)) is None
    assert claim(ledger, BIG).attempt == 2


def test_the_counts_of_a_job_stay_right_while_some_of_its_items_are_large(ledger, item, accept, fleet, make_result):
    job_id = accept(*[item(seed=seed) for seed in range(3)])
    first = claim(ledger, SMALL)

    def counts():
        return {key: value for key, value in ledger.jobs(before=None, limit=1).jobs[0].counts.items() if value}

    assert counts() == {State.QUEUED: 2, State.RUNNING: 1}
    overflow(ledger, first, SMALL)
    assert counts() == {State.QUEUED: 3}
    # The large item was accepted before the others.
    big, small = claim(ledger, BIG), claim(ledger, SMALL)
    assert (big.index, small.index, counts()) == (0, 1, {State.QUEUED: 1, State.RUNNING: 2})
    ledger.commit(big, make_result())
    ledger.commit(small, make_result())
    ledger.commit(claim(ledger, SMALL), make_result())
    assert counts() == {State.SUCCEEDED: 3}
    assert ledger.job(job_id).state is State.SUCCEEDED


@pytest.mark.parametrize("end", ["lease", "restart", "drain", "retry"])
def test_a_large_item_that_returns_to_the_queue_stays_large(ledger, accept, fleet, clock, end):
    moved(ledger, accept)
    running = claim(ledger, BIG)
    if end == "lease":
        # In steps, as caretakers reap: a longer gap would be a stall.
        ledger.reap()
        requeued = {}
        for _ in range(8):
            clock.advance(4)
            beat(ledger, SMALL)
            beat(ledger, BIG)
            requeued |= ledger.reap().requeued
        assert requeued == {LARGE: 1}
    elif end == "restart":
        assert ledger.reclaim(slot=BIG, boot="another") == 1
    else:
        assert ledger.release(running, end) == "queued"

    assert claim(ledger, SMALL) is None
    assert claim(ledger, BIG, boot="another").pool == LARGE


def test_a_claim_drops_the_entries_of_dead_slots_and_each_heartbeat_one_of_them(ledger, accept, fleet, clock):
    index = f"{keys.PREFIX}memory:{LARGE}"
    for number in range(30):
        beat(ledger, f"gone-{number}", gib=100)
    for _ in range(3):
        clock.advance(SLOT_TTL_MS / 2000)
        beat(ledger, SMALL)
        beat(ledger, BIG)
    left = ledger.redis.zcard(index)
    for _ in range(20):
        beat(ledger, SMALL)
    assert ledger.redis.zcard(index) < left

    moved(ledger, accept)

    assert ledger.redis.zrange(index, 0, -1, withscores=True) == [(SMALL, 24.0), (BIG, 80.0)]


@pytest.fixture
def caretaker(ledger, redis_url, options):
    celery = make_celery(redis_url, side="api", timeout_s=2)
    yield Caretaker(ledger, celery, options)
    celery.close()


def test_the_wake_ups_for_large_items_follow_the_largest_live_slots(ledger, accept, fleet, caretaker):
    moved(ledger, accept)
    big, small = keys.wake_list(f"{LARGE}@80"), keys.wake_list(f"{LARGE}@24")

    for _ in range(3):
        caretaker.audit("large")
    assert (ledger.redis.llen(big), ledger.redis.llen(small)) == (1, 0)

    ledger.workers.remove(BIG)
    for _ in range(3):
        caretaker.audit("large")
    assert (ledger.redis.llen(big), ledger.redis.llen(small)) == (1, 1)

    ledger.workers.remove(SMALL)
    for _ in range(3):
        caretaker.audit("large")
    assert ledger.redis.llen(keys.wake_list(LARGE)) == 0


def test_an_expired_lease_of_a_large_item_wakes_the_largest_slots(ledger, accept, fleet, caretaker, clock, caplog):
    moved(ledger, accept)
    claim(ledger, BIG)
    ledger.reap()
    with caplog.at_level(logging.WARNING, logger="flux2.caretaker"):
        for _ in range(8):
            clock.advance(4)
            beat(ledger, SMALL)
            beat(ledger, BIG)
            caretaker.reap()

    assert [record.pool for record in caplog.records] == [LARGE]
    assert ledger.redis.llen(keys.wake_list(f"{LARGE}@80")) == 1


def test_large_items_are_audited_while_a_process_of_an_earlier_version_leads(
    redis_client, redis_url, item, slot_report, wait_until
):
    options = QueueSettings(reap_s=0.01, audit_s=0.01)
    ledger = Ledger(redis_client, options)
    larger = slot_report(features="merged,large", memory_bytes=str(80 * 2**30))
    ledger.workers.beat(BIG, larger)
    ledger.accept("job", [item()], record={})
    overflow(ledger, ledger.claim_next(["flux2"], slot=SMALL, boot="boot", warm="base"), SMALL)
    redis_client.set(keys.AUDIT_LEADER, "a process of an earlier version")
    celery = make_celery(redis_url, side="api", timeout_s=2)
    caretaker = Caretaker(ledger, celery, options)

    caretaker.start()

    wait_until(lambda: redis_client.llen(keys.wake_list(f"{LARGE}@80")) == 1, what="the wake-up")
    caretaker.stop()
    celery.close()
