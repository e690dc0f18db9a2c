"""Slots are listed by name in pages, and the queue is counted by tenant and adapters, whatever the bounds leave out."""

import pytest

from shared.job import AdapterRef, Progress
from shared.ledger import Ledger, Submission, keys, queue_reader
from shared.ledger.queue_reader import Group, Load
from shared.settings import QueueSettings

POOL = "flux2"


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(), clock_ms=clock)


@pytest.fixture
def accept(ledger, item):
    def store(job, count=1, *, tenant="a", adapter="", **options):
        refs = (AdapterRef(path=adapter, sha256=adapter, size_bytes=1, multiplier=1.0),) if adapter else ()
        items = [item(adapters=refs, **options)] * count
        ledger.accept_all([Submission(job, items, record={}, tenant=tenant)])

    return store


def claim(ledger, slot="gpu-0", warm="base"):
    return ledger.claim_next([POOL], slot=slot, boot="boot", warm=warm)


def names(page):
    return [listed.slot.name for listed in page.slots]


def group(tenant, adapters, *, engine="exact"):
    return Group(tenant, "flux2", engine, adapters)


def test_pages_list_each_live_slot_once_in_the_order_of_names(ledger, slot_report):
    for name in ("b", "d", "a", "c", "e"):
        ledger.workers.beat(name, slot_report())

    pages = [ledger.slots.page(limit=2)]
    while pages[-1].next_after is not None:
        pages.append(ledger.slots.page(after=pages[-1].next_after, limit=2))

    assert [names(page) for page in pages] == [["a", "b"], ["c", "d"], ["e"]]
    assert ledger.slots.count() == 5


def test_slots_that_died_or_stopped_are_not_listed(ledger, clock, slot_report):
    for name in ("dead", "live", "stopped"):
        ledger.workers.beat(name, slot_report())
    ledger.workers.remove("stopped")
    clock.advance(16)
    ledger.redis.hset(keys.slot("dead"), mapping=slot_report())
    # Still in the index: nobody has forgotten it.
    ledger.redis.zadd(keys.SLOTS, {"live": clock()})

    assert names(ledger.slots.page(limit=5)) == ["live"]
    assert ledger.slots.count() == 1

    ledger.workers.beat("live", slot_report())

    assert ledger.redis.zrange(keys.SLOT_NAMES, 0, -1) == ["live"]


def test_slots_of_an_earlier_version_are_listed(ledger, clock, slot_report):
    ledger.workers.beat("b-new", slot_report())
    # As its scripts store a heartbeat.
    for name in ("a-old", "c-old"):
        ledger.redis.hset(keys.slot(name), mapping=slot_report())
        ledger.redis.zadd(keys.SLOTS, {name: clock()})

    assert names(ledger.slots.page(limit=5)) == ["a-old", "b-new", "c-old"]


def test_a_name_that_an_earlier_version_left_in_the_index_goes_with_the_next_heartbeats(ledger, slot_report):
    ledger.redis.zadd(keys.SLOT_NAMES, {"gone": 0})

    # Each looks at one of the two names; 2 to the power of -40 is the chance that all look at the other one.
    for _ in range(40):
        ledger.workers.beat("live", slot_report())

    assert ledger.redis.zrange(keys.SLOT_NAMES, 0, -1) == ["live"]


def test_a_slot_shows_the_item_that_it_runs_and_not_one_that_has_ended(ledger, accept, clock, slot_report):
    accept("job", 2, tenant="acme", adapter="x.safetensors")
    running, ended = claim(ledger, "gpu-0"), claim(ledger, "gpu-1")
    ledger.renew(running, Progress(stage="denoise", step=3, steps=25))
    ledger.commit(ended, None)
    for slot, item_id in (("gpu-0", running.item_id), ("gpu-1", ended.item_id), ("gpu-2", running.item_id)):
        ledger.workers.beat(slot, slot_report(item=item_id, adapters="x.safetensors"))

    first, *others = ledger.slots.page(limit=5).slots

    item = first.item
    assert (item.job_id, item.index, item.tenant, item.adapters) == ("job", running.index, "acme", "x.safetensors")
    assert (item.attempt, item.started_ms, item.progress.step) == (1, clock(), 3)
    assert first.slot.adapters == "x.safetensors"
    assert [other.item for other in others] == [None, None]


def test_the_queue_is_counted_by_tenant_and_adapters(ledger, accept):
    accept("one", 3, adapter="x.safetensors")
    accept("two", 2, tenant="b", adapter="x.safetensors")
    accept("fast", 1, tenant="b", engine="fast")
    first, second = claim(ledger), claim(ledger, "gpu-1")
    assert {first.job_id, second.job_id} == {"one", "two"}

    overview = ledger.queue.overview()

    assert (overview.queued, overview.running) == (4, 2)
    assert overview.loads == (
        Load(group("a", "x.safetensors"), queued=2, running=1),
        Load(group("b", "x.safetensors"), queued=1, running=1),
        Load(group("b", "base", engine="fast"), queued=1, running=0),
    )


def test_several_people_who_watch_the_queue_cost_one_reading_a_second(ledger, accept, clock):
    accept("one", 1)
    seen = ledger.queue.overview()
    accept("two", 1, tenant="b")

    assert ledger.queue.overview() is seen
    assert ledger.queue.overview(tenant="b").queued == 1
    clock.advance(1.5)
    assert ledger.queue.overview().queued == 2


def test_a_tenant_is_counted_alone(ledger, accept):
    accept("one", 3)
    accept("two", 2, tenant="b", adapter="x.safetensors")
    claim(ledger)
    claim(ledger)

    overview = ledger.queue.overview(tenant="b")

    assert (overview.queued, overview.running) == (1, 1)
    assert overview.loads == (Load(group("b", "x.safetensors"), queued=1, running=1),)
    assert ledger.queue.overview(tenant="nobody").loads == ()


def test_what_is_beyond_the_bounds_counts_in_a_group_without_adapters(ledger, accept, monkeypatch):
    monkeypatch.setattr(queue_reader, "_LANES_READ", 1)
    monkeypatch.setattr(queue_reader, "_LEASES_READ", 1)
    for number in range(4):
        accept(f"job-{number}", adapter=f"{number}.safetensors")
    claims = [claim(ledger), claim(ledger, "gpu-1")]
    ledger.redis.zadd(keys.LEASES, {claims[0].item_id: 1})

    overview = ledger.queue.overview()

    assert (overview.queued, overview.running) == (2, 2)
    assert overview.loads == (
        Load(group("a", ""), queued=1, running=1),
        Load(group("a", "2.safetensors"), queued=1, running=0),
        Load(group("a", "0.safetensors"), queued=0, running=1),
    )


def test_images_of_the_last_minute_give_the_rate(ledger, accept, clock, make_result):
    # 1,700,000,000,000 ms is the begin of a period of 10 s.
    accept("one", 6)
    accept("two", 1, tenant="b")
    for _ in range(4):
        ledger.commit(claim(ledger), make_result())
    clock.advance(30)
    ledger.commit(claim(ledger), make_result())
    ledger.commit(claim(ledger), None)

    # Five images in the minute before this period, of which nothing has passed.
    assert ledger.queue.overview().images_per_minute == 5.0
    assert ledger.queue.overview(tenant="b").images_per_minute == 1.0

    # The first four are older than the 65 s that are counted now: 60 / 65 of an image a minute.
    clock.advance(45)
    assert ledger.queue.overview().images_per_minute == 0.9
