"""Leases and other stored times when Redis stalls, refuses writes or has its clock set, while workers live."""

import os
import signal
import threading

import pytest

from shared.errors import LedgerUnavailable
from shared.job import AdapterRef, Progress, State
from shared.ledger import Ledger, keys
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings

STEP = Progress(stage="denoise", step=3, steps=25)
HOUR_MS = 3_600_000
TTL_MS = 30_000


@pytest.fixture
def open_ledger(redis_client, clock):
    """Open the ledger of a process that has other settings than the defaults of these tests."""
    return lambda **options: Ledger(redis_client, QueueSettings(**{"lease_ttl_s": 30, **options}), clock_ms=clock)


@pytest.fixture
def ledger(open_ledger):
    """A ledger whose caretakers have passed once."""
    made = open_ledger()
    made.reap()
    return made


@pytest.fixture
def claim(ledger, item):
    """Accept a job of one item and claim it through a ledger."""

    def make(of: Ledger = ledger, *, slot: str = "gpu-0"):
        of.accept(f"job-{of.redis.incr('jobs')}", [item()], record={})
        return of.claim_next(["flux2"], slot=slot, boot="boot", warm="base")

    return make


def left_ms(ledger, claimed):
    return ledger.redis.zscore(keys.LEASES, claimed.item_id) - ledger.now_ms()


def pass_steadily(ledger, clock, seconds):
    """Let time pass while a caretaker reaps each second; return how many items it requeued."""
    requeued = 0
    for _ in range(seconds):
        clock.ms += 1000
        requeued += sum(ledger.reap().requeued.values())
    return requeued


def test_a_stall_longer_than_the_lease_requeues_nothing_although_the_caretakers_pass_first(ledger, clock, claim):
    claims = [claim(slot=f"gpu-{n}") for n in range(3)]

    for _ in range(3):
        clock.ms += 40_000
        reaped = [ledger.reap() for _ in range(3)]

        assert [(result.requeued, result.ended) for result in reaped] == [({}, [])] * 3
        assert [result.grace for result in reaped] == [True, False, False]
        assert [ledger.renew(claimed, STEP) for claimed in claims] == ["ok"] * 3


def test_a_dead_workers_item_is_requeued_one_term_after_the_stall(ledger, clock, claim):
    claim()
    clock.ms += 40_000
    ledger.reap()

    assert pass_steadily(ledger, clock, 30) == 0
    assert pass_steadily(ledger, clock, 1) == 1


@pytest.mark.parametrize(("stall_s", "steady_s"), [(12, 4), (40, 1), (11, 10)])
def test_stalls_that_come_again_and_again_do_not_keep_a_dead_workers_item(ledger, clock, claim, stall_s, steady_s):
    living, _ = claim(), claim(slot="gpu-1")
    steady, requeued = 0, 0
    while not requeued and steady <= 40:
        clock.ms += stall_s * 1000
        assert ledger.reap().requeued == {}
        assert ledger.renew(living, STEP) == "ok"
        requeued = pass_steadily(ledger, clock, steady_s)
        steady += steady_s

    assert requeued == 1
    assert 30 <= steady <= 30 + 2 * steady_s


def test_passes_that_come_at_their_period_grant_no_grace(ledger, clock, claim):
    claim()

    assert pass_steadily(ledger, clock, 30) == 0
    assert pass_steadily(ledger, clock, 1) == 1


def test_a_process_that_reaps_more_rarely_than_leases_last_still_requeues_the_items_of_the_dead(
    open_ledger, clock, claim
):
    rare = open_ledger(reap_s=100)
    claim(rare)
    period_ms = int(rare._settings.reap_period_s * 1000)
    requeued = 0

    for _ in range(6):
        clock.ms += period_ms
        requeued += sum(rare.reap().requeued.values())

    assert (period_ms, requeued) == (7500, 1)


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
def test_a_clock_that_is_set_by_an_hour_neither_ends_nor_prolongs_a_lease(ledger, clock, claim, step_ms):
    living, dead = claim(), claim(slot="gpu-1")
    clock.ms += step_ms

    assert ledger.reap().grace
    assert [left_ms(ledger, claimed) for claimed in (living, dead)] == [TTL_MS, TTL_MS]
    assert pass_steadily(ledger, clock, 20) == 0
    assert ledger.renew(living, STEP) == "ok"
    assert pass_steadily(ledger, clock, 11) == 1
    assert [ledger.job(claimed.job_id).items[0].state for claimed in (living, dead)] == [State.RUNNING, State.QUEUED]


def test_a_renewal_that_came_between_the_step_and_the_pass_counts(ledger, clock, claim):
    claimed = claim()
    clock.ms -= HOUR_MS
    ledger.renew(claimed, STEP)

    ledger.reap()

    assert left_ms(ledger, claimed) == TTL_MS


def test_a_process_with_short_leases_grants_the_long_term_of_a_lease_that_states_one(open_ledger, clock, claim):
    defaults, long = open_ledger(lease_ttl_s=15), open_ledger(lease_ttl_s=120)
    defaults.reap()
    claimed = claim(long)
    for cause in ("a restart", "a stall", "a step back"):
        if cause == "a restart":
            defaults.redis.set(f"{keys.PREFIX}run_id", "another")
        clock.ms += {"a restart": 0, "a stall": 90_000, "a step back": -HOUR_MS}[cause]

        assert defaults.reap().grace, cause
        assert left_ms(defaults, claimed) == 120_000, cause


def test_grace_never_shortens_a_lease_that_an_earlier_version_granted(open_ledger, clock, claim):
    defaults, long = open_ledger(lease_ttl_s=15), open_ledger(lease_ttl_s=120)
    defaults.reap()
    claimed = claim(long)
    defaults.redis.hdel(keys.item(claimed.item_id), "lease_ttl_ms")

    defaults.redis.set(f"{keys.PREFIX}run_id", "another")
    assert defaults.reap().grace
    assert left_ms(defaults, claimed) == 120_000
    clock.ms -= HOUR_MS
    assert defaults.reap().grace
    assert left_ms(defaults, claimed) == 120_000
    clock.ms += 119_000
    assert defaults.reap().grace
    assert left_ms(defaults, claimed) == 15_000


def test_an_ended_or_requeued_item_stores_no_term(ledger, claim):
    ended, drained = claim(), claim()
    stored = [ledger.redis.hget(keys.item(claimed.item_id), "lease_ttl_ms") for claimed in (ended, drained)]

    ledger.commit(ended, None)
    ledger.release(drained, "drain")

    assert stored == [str(TTL_MS)] * 2
    assert not any(ledger.redis.hexists(keys.item(claimed.item_id), "lease_ttl_ms") for claimed in (ended, drained))


def test_a_fleet_of_many_processes_writes_the_time_of_a_pass_twice_a_period_at_most(ledger, clock):
    # With `appendfsync always` each write is a flush of the disk.
    ledger.redis.config_resetstat()

    for _ in range(100):
        clock.ms += 10
        ledger.reap()

    assert ledger.redis.info("commandstats")["cmdstat_set"]["calls"] <= 2


def refuse_by_memory(client):
    client.config_set("maxmemory", "1")
    return lambda: client.config_set("maxmemory", "0")


def refuse_as_replica(client):
    # No process listens on port 1, so the replica keeps its data.
    client.replicaof("127.0.0.1", 1)
    return lambda: client.replicaof("NO", "ONE")


@pytest.mark.parametrize("refuse", [refuse_by_memory, refuse_as_replica])
def test_a_redis_that_takes_no_writes_for_longer_than_a_lease_requeues_nothing(
    ledger, clock, claim, redis_client, refuse
):
    claimed = claim()
    undo = refuse(redis_client)
    try:
        for _ in range(40):
            clock.ms += 1000
            with pytest.raises(LedgerUnavailable):
                ledger.renew(claimed, STEP)
            with pytest.raises(LedgerUnavailable):
                ledger.reap()
    finally:
        undo()

    assert ledger.reap().grace
    assert ledger.renew(claimed, STEP) == "ok"


def test_a_redis_that_is_stopped_for_longer_than_a_lease_requeues_nothing(tmp_path, item):
    """The same with the real clock and a real backlog: of one caretaker's passes, and then of one renewal."""
    settings = QueueSettings(lease_ttl_s=0.6, renew_s=0.1, reap_s=0.05)
    with RedisServer(tmp_path) as server:
        ledger = Ledger.connect(server.url, settings, timeout_s=5)
        ledger.accept("job", [item()], record={})
        ledger.reap()
        claimed = ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base")
        reaps, renewals = [], []
        callers = [
            threading.Thread(target=lambda: reaps.append(Ledger.connect(server.url, settings, timeout_s=5).reap())),
            threading.Thread(target=lambda: renewals.append(ledger.renew(claimed, STEP))),
        ]
        os.kill(server.pid, signal.SIGSTOP)
        try:
            callers[0].start()
            # Longer than the lease; nothing else can be observed of a stopped process.
            threading.Event().wait(1.0)
            callers[1].start()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for caller in callers:
            caller.join()

        assert [(reap.requeued, reap.ended) for reap in reaps] == [({}, [])]
        assert renewals == ["ok"]


def test_webhooks_wait_no_longer_when_the_clock_goes_back(ledger, clock, redis_client):
    def reserve(limit=9):
        return [message.job_id for message in ledger.outbox.reserve_due(reserve_s=600, limit=limit)]

    for job in ("due", "in a minute"):
        redis_client.hset(keys.job(job), mapping={"webhook": "https://example.com", "tenant": "a"})
    redis_client.zadd(keys.OUTBOX, {"due": clock.ms, "in a minute": clock.ms + 60_000})
    reserve(0)
    clock.ms -= HOUR_MS

    ledger.reap()

    assert reserve() == ["due"]
    clock.ms += 59_999
    assert reserve() == []
    clock.ms += 1
    assert reserve() == ["in a minute"]


def test_an_audit_is_led_again_although_its_dead_leaders_term_ends_in_an_hour(ledger, clock, redis_client):
    redis_client.set(keys.AUDIT_LEADER, "dead", px=HOUR_MS)
    clock.ms -= HOUR_MS

    ledger.reap()

    assert ledger.wakeups.try_lead_audit("alive")


def test_a_slot_that_died_before_the_clock_went_back_counts_as_dead(ledger, clock, slot_report):
    ledger.workers.beat("dead", slot_report())
    clock.ms -= HOUR_MS

    assert ledger.workers.live_slots() == []
    ledger.workers.beat("alive", slot_report())
    assert ledger.redis.zrange(keys.SLOTS, 0, -1) == ["alive"]
    assert [slot.name for slot in ledger.workers.live_slots()] == ["alive"]


def test_faults_that_were_recorded_before_the_clock_went_back_are_forgotten(ledger, clock):
    ledger.workers.record_fault("gpu-0", "job:0", window_s=600)
    assert ledger.workers.count_faults("gpu-0", window_s=600) == 1
    clock.ms -= HOUR_MS

    assert ledger.workers.count_faults("gpu-0", window_s=600) == 0


def test_a_tenant_that_was_served_before_the_clock_went_back_gets_its_turn(ledger, clock, item):
    def served():
        claimed = ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base")
        ledger.commit(claimed, None)
        return claimed.job_id.partition("-")[0]

    for number in range(6):
        for tenant in ("a", "b"):
            ledger.accept(f"{tenant}-{number}", [item()], record={}, tenant=tenant)
    assert [served(), served()] == ["a", "b"]
    clock.ms -= HOUR_MS

    turns = []
    for _ in range(6):
        clock.ms += 1000
        turns.append(served())

    assert turns[-4:].count("a") == turns[-4:].count("b") == 2


@pytest.mark.parametrize("step_ms", [20_000, HOUR_MS, -HOUR_MS])
def test_live_slots_may_be_missing_after_a_gap_in_all_heartbeats(ledger, clock, step_ms, slot_report):
    for _ in range(3):
        clock.ms += 3000
        ledger.workers.beat("gpu-0", slot_report())
        ledger.workers.beat("gpu-1", slot_report())
    assert not ledger.workers.slots_may_be_missing()
    clock.ms += step_ms

    ledger.workers.beat("gpu-0", slot_report())

    assert ledger.workers.slots_may_be_missing()
    # Until each living slot has had the time for another heartbeat.
    assert 10_000 < ledger.redis.pttl(keys.SLOTS_MISSING) <= 15_000


def test_live_slots_may_be_missing_even_if_a_claim_forgot_them_before_the_first_heartbeat(
    ledger, clock, item, slot_report
):
    for slot in ("gpu-0", "gpu-1"):
        ledger.workers.beat(slot, slot_report())
    ref = AdapterRef(path="a.safetensors", sha256="aa", size_bytes=1, multiplier=1.0)
    ledger.accept("job", [item(adapters=(ref,))], record={})
    clock.ms += 20_000

    # It compares the adapters of live slots.
    ledger.claim_next(["flux2"], slot="gpu-0", boot="b", warm="base")
    ledger.workers.beat("gpu-0", slot_report())

    assert [slot.name for slot in ledger.workers.live_slots()] == ["gpu-0"]
    assert ledger.workers.slots_may_be_missing()
