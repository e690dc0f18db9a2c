"""The estimated position of a job is the number of claims before its own, and the slots that serve it set its end."""

import random
from collections import deque

import pytest

from shared.errors import QueueFull
from shared.job import AdapterRef, ItemError
from shared.ledger import Ledger, keys
from shared.ledger.new_items import NewItems
from shared.ledger.shape import Shape
from shared.settings import QueueSettings

WAIT_BOUND_S, PACE_MS = 1000, 10_000


@pytest.fixture
def ledger(redis_client, clock):
    # Thousands of steps would each wait for the disk.
    redis_client.config_set("appendfsync", "no")
    yield Ledger(redis_client, QueueSettings(cap=10_000, wait_bound_s=WAIT_BOUND_S), clock_ms=clock)
    redis_client.config_set("appendfsync", "always")


def adapter(name):
    return (AdapterRef(path=f"{name}.safetensors", sha256=name, size_bytes=1, multiplier=1.0),)


class Fleet:
    """Slots that are always busy: the oldest item ends, and its slot claims the next one and prepares another."""

    def __init__(self, ledger, clock, slot_report, slots):
        self._ledger, self._clock, self._slot_report, self._slots = ledger, clock, slot_report, slots
        self._warm = dict.fromkeys(range(slots), "base")
        self._prepared = dict(self._warm)
        self.running = deque()
        self.claims = []

    def beat(self):
        for number in self._warm:
            self._beat(number)

    def _beat(self, number):
        self._ledger.workers.beat(f"gpu-{number}", self._slot_report(state="busy", warm=self._warm[number]))

    def step(self):
        """Let a slot claim an item, after the end of its last one; return whether there was one."""
        if len(self.running) == self._slots:
            self._ledger.commit(self.running.popleft(), None)
        self._clock.advance(PACE_MS / 1000 / self._slots)
        number = len(self.claims) % self._slots
        slot = f"gpu-{number}"
        claim = self._ledger.claim_next(["flux2"], slot=slot, boot="boot", warm=self._prepared[number])
        if claim is None:
            return False
        self._warm[number] = claim.spec.adapter_key
        self._beat(number)
        following = self._ledger.peek_next(["flux2"], slot=slot, warm=claim.spec.adapter_key)
        self._prepared[number] = self._warm[number] if following is None else following.adapter_key
        self.running.append(claim)
        self.claims.append((claim.job_id, claim.index))
        return True

    def claim_all(self, jobs):
        """Let slots claim until each job has a claim since."""
        waiting = set(jobs)
        while waiting:
            assert self.step()
            waiting.discard(self.claims[-1][0])


def predict(ledger, jobs):
    """Return the estimated position of each job that has queued items."""
    positions = {job_id: ledger.job(job_id).queue_position for job_id in jobs}
    return {job_id: position for job_id, position in positions.items() if position is not None}


def play(ledger, clock, item, slot_report, *, seed, slots, tenants, one_priority_each=False, ages_s=(0,)):
    """Fill a queue at random while a fleet runs; return pairs of the estimated and the real position of each job."""
    chance = random.Random(seed)
    names = [f"tenant-{number}" for number in range(tenants)]
    priority_of = {name: chance.choice([0, 3, 5]) for name in names}
    fleet, jobs = Fleet(ledger, clock, slot_report, slots), []
    ledger.redis.set(keys.pace("flux2"), PACE_MS)

    def accept():
        tenant = chance.choice(names)
        specs = [item(adapters=adapter(chance.choice("abc"))) for _ in range(chance.choice([1, 1, 2, 3, 8]))]
        priority = priority_of[tenant] if one_priority_each else chance.choice([0, 3, 5])
        jobs.append(f"job-{len(jobs)}")
        ledger.accept(jobs[-1], specs, record={}, tenant=tenant, priority=priority)
        clock.advance(chance.choice(ages_s))

    fleet.beat()
    for _ in range(chance.randrange(1, 8)):
        accept()
    for _ in range(chance.randrange(12)):
        fleet.step()
    for _ in range(chance.randrange(1, 25)):
        accept()
    # All slots are busy and end one after the other: of an idle one, the forecast does not know the merged adapters.
    for _ in range(2 * slots):
        accept()
        fleet.step()
    fleet.beat()
    positions, done = predict(ledger, jobs), len(fleet.claims)
    fleet.claim_all(positions)
    claimed = [job_id for job_id, _ in fleet.claims[done:]]
    return [(position, claimed.index(job_id)) for job_id, position in positions.items()]


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_the_position_is_exact_while_each_tenant_has_one_priority_and_few_slots(
    ledger, clock, item, slot_report, seed, slots
):
    tenants = 6
    pairs = play(ledger, clock, item, slot_report, seed=seed, slots=slots, tenants=tenants, one_priority_each=True)

    # Each slot claims an item per pace. Of overdue items, the forecast does not know which claims take the oldest.
    in_time = [pair for pair in pairs if pair[1] < slots * WAIT_BOUND_S * 1000 / PACE_MS]
    assert in_time
    assert [estimated for estimated, _ in in_time] == [real for _, real in in_time]
    assert all(abs(estimated - real) <= slots + tenants for estimated, real in pairs)


@pytest.mark.parametrize("ages_s", [(0,), (0, 10, 100)], ids=["young", "some overdue"])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_the_position_of_fourteen_in_fifteen_jobs_differs_by_the_slots_and_tenants_at_most(
    redis_client, ledger, clock, item, slot_report, slots, ages_s
):
    pairs, tenants = [], 5
    for seed in range(5):
        redis_client.flushall()
        pairs += play(ledger, clock, item, slot_report, seed=seed, slots=slots, tenants=tenants, ages_s=ages_s)
        clock.advance(60)

    far = [pair for pair in pairs if abs(pair[0] - pair[1]) > slots + tenants]
    assert len(pairs) > 50
    # The forecast does not know which claims of a slot follow the turns, and what idle slots have merged.
    assert len(far) <= len(pairs) / 15


def test_a_job_of_the_first_priority_is_next_and_its_eta_says_so(ledger, clock, item, slot_report):
    ledger.workers.beat("gpu-0", slot_report())
    ledger.redis.set(keys.pace("flux2"), PACE_MS)
    ledger.accept("batch", [item()] * 17, record={})
    ledger.accept("urgent", [item()], record={}, priority=0)

    urgent, batch = ledger.job("urgent"), ledger.job("batch")

    assert (urgent.queue_position, urgent.eta_s) == (0, 10.0)
    assert (batch.queue_position, batch.eta_s) == (1, 180.0)


def test_a_small_job_beside_another_tenants_batch_waits_for_its_turn_only(ledger, item, slot_report):
    ledger.workers.beat("gpu-0", slot_report())
    ledger.redis.set(keys.pace("flux2"), PACE_MS)
    ledger.accept("batch", [item()] * 100, record={}, tenant="a")
    ledger.accept("small", [item()] * 3, record={}, tenant="b")

    small, batch = ledger.job("small"), ledger.job("batch")

    # By name, then in turns: a b a b a b a a ...
    assert (small.queue_position, small.eta_s) == (1, 60.0)
    assert (batch.queue_position, batch.eta_s) == (0, 1030.0)


def test_a_job_that_is_overdue_goes_before_other_priorities(ledger, clock, item):
    ledger.accept("patient", [item()], record={}, priority=9)
    clock.advance(WAIT_BOUND_S - 10)
    ledger.accept("urgent", [item()] * 5, record={}, priority=0)
    assert (ledger.job("patient").queue_position, ledger.job("urgent").queue_position) == (5, 0)
    clock.advance(20)

    assert (ledger.job("patient").queue_position, ledger.job("urgent").queue_position) == (0, 1)


def test_a_job_waits_no_longer_than_until_it_is_overdue(ledger, clock, item, slot_report):
    ledger.workers.beat("gpu-0", slot_report())
    ledger.redis.set(keys.pace("flux2"), PACE_MS)
    ledger.accept("patient", [item()], record={}, priority=9)
    ledger.accept("flood", [item()] * 5000, record={}, priority=0)
    clock.advance(WAIT_BOUND_S / 2)

    # Items of 10 s each until then, one of them at its very end, and none was accepted earlier.
    assert ledger.job("patient").queue_position == 51


def test_only_the_slots_that_take_items_of_the_pool_count_for_the_eta(ledger, clock, item, slot_report):
    ledger.redis.set(keys.pace("flux2"), PACE_MS)
    ledger.redis.set(keys.pace("flux2+fast"), PACE_MS)
    for slot in ("gpu-0", "gpu-1"):
        ledger.workers.beat(slot, slot_report())
    ledger.workers.beat("gpu-2", slot_report(engines="exact,fast"))
    ledger.workers.beat("gpu-3", slot_report(state="faulty"))
    ledger.workers.beat("gpu-4", slot_report(state="draining"))
    ledger.workers.beat("gpu-5", slot_report(model="flux2_klein_4b"))
    ledger.accept("exact", [item()] * 6, record={})
    ledger.accept("fast", [item(engine="fast")] * 6, record={})

    # The slot that serves both takes two of the older ones first.
    assert (ledger.job("exact").eta_s, ledger.job("fast").eta_s) == (20.0, 80.0)
    # The fleet is counted once a second at most.
    ledger.workers.remove("gpu-1")
    assert ledger.job("exact").eta_s == 20.0
    clock.advance(10)
    assert ledger.job("exact").eta_s == 30.0


def test_an_item_needs_a_whole_slot_however_many_there_are(ledger, item, slot_report):
    ledger.redis.set(keys.pace("flux2"), PACE_MS)
    for number in range(8):
        ledger.workers.beat(f"gpu-{number}", slot_report())
    ledger.accept("job", [item()], record={})

    assert ledger.job("job").eta_s == 10.0


def test_a_job_with_items_in_two_pools_has_the_outlook_of_both(ledger, clock, item, slot_report):
    features = {"features": "merged,large"}
    ledger.workers.beat("small", slot_report(**features, memory_bytes=str(24 * 2**30)))
    ledger.workers.beat("big", slot_report(**features, memory_bytes=str(80 * 2**30)))
    for pool in ("flux2", "flux2+large"):
        ledger.redis.set(keys.pace(pool), PACE_MS)
    ledger.accept("mixed", [item(seed=seed) for seed in range(5)], record={})
    error = ItemError(code="out_of_memory", message="full", retryable=False)
    for _ in range(4):
        claim = ledger.claim_next(["flux2"], slot="small", boot="boot", warm="base")
        sizes = {"memory_bytes": 24 * 2**30, "error": error, "too_large": error}
        assert ledger.release_too_large(claim, **sizes) == "queued"
    ledger.accept("next", [item()] * 3, record={})

    mixed, following = ledger.job("mixed"), ledger.job("next")

    # Four large items on the big slot, which are older than the others; the small one takes these.
    assert (mixed.queue_position, mixed.eta_s) == (0, 40.0)
    assert (following.queue_position, following.eta_s) == (1, 40.0)


def test_without_the_turns_of_this_version_the_position_counts_the_shares(ledger, item):
    ledger.accept("first", [item()] * 2, record={})
    ledger.accept("urgent", [item()], record={}, priority=0)
    # A process of an earlier version fills the queue and does not know the index.
    ledger.redis.delete(f"{keys.PREFIX}turns:flux2", f"{keys.PREFIX}turn_entries:flux2")

    assert (ledger.job("urgent").queue_position, ledger.job("first").queue_position) == (0, 1)


def test_many_tenants_and_adapters_are_estimated_from_samples(ledger, item):
    for number in range(300):
        ledger.accept(f"job-{number}", [item()] * 2, record={}, tenant=f"tenant-{number:03}", priority=number % 2)
    specs = [item(adapters=adapter(f"{number:064x}")) for number in range(200)]
    ledger.accept("adapters", specs, record={}, tenant="z", priority=9)

    # All items of priority 0, then the turns of 110 tenants.
    assert ledger.job("job-221").queue_position == pytest.approx(300 + 110, rel=0.02)
    view = ledger.job("adapters")
    assert (view.queue_position, view.eta_s) == (pytest.approx(600, rel=0.01), None)


def test_a_job_is_shown_without_an_outlook_if_its_queue_cannot_be_read(redis_client, clock, item, caplog):
    ledger = Ledger(redis_client, QueueSettings(cap=2), clock_ms=clock)
    ledger.accept("job", [item()], record={})
    redis_client.set(keys.times("flux2"), "not a hash")

    views = [ledger.job("job") for _ in range(3)]

    assert [(view.queue_position, view.eta_s, view.eta_range_s) for view in views] == [(None, None, None)] * 3
    assert ledger.outlook("job", items=1).eta_s is None
    with pytest.raises(QueueFull) as full:
        ledger.accept("another", [item()] * 2, record={})
    assert full.value.retry_after_s is None
    # The queue is not read again for each of them.
    assert [record.name for record in caplog.records] == ["flux2.ledger.outlook"]


def test_a_job_is_shown_without_an_outlook_if_one_of_its_items_cannot_be_read(ledger, item):
    ledger.accept("odd", [item()] * 2, record={})
    ledger.accept("next", [item()], record={})
    ledger.redis.hset(keys.item("odd:1"), "shape", "of another version")

    assert ledger.job("odd").queue_position is None
    assert ledger.job("odd").items[0].state == "queued"


def test_estimates_of_what_may_come_share_one_reading_of_the_queue(ledger, clock, item):
    ledger.accept("job", [item()] * 2, record={})
    new = NewItems("flux2", "default", 5, shapes={Shape.of(item()): 3}, lists=2)
    ledger.estimate(new)
    scripts = ledger.redis.info("commandstats")["cmdstat_evalsha"]["calls"]

    for _ in range(3):
        ledger.estimate(new)

    assert ledger.redis.info("commandstats")["cmdstat_evalsha"]["calls"] == scripts
    clock.advance(60)
    ledger.estimate(new)
    assert ledger.redis.info("commandstats")["cmdstat_evalsha"]["calls"] > scripts


def test_jobs_of_pools_that_no_slot_serves_share_a_forecast(ledger, item):
    ledger.accept("exact", [item()], record={})
    ledger.accept("fast", [item(engine="fast")], record={})
    predict(ledger, ["exact", "fast"])
    scripts = ledger.redis.info("commandstats")["cmdstat_evalsha"]["calls"]

    positions = predict(ledger, ["exact", "fast", "exact", "fast"])

    assert positions == {"exact": 0, "fast": 0}
    assert ledger.redis.info("commandstats")["cmdstat_evalsha"]["calls"] == scripts
