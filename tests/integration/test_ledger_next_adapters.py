"""Slots that choose at the same time prepare different adapters, because each knows what the others merge next."""

import itertools

import pytest

from shared.job import AdapterRef, ItemSpec
from shared.ledger import Ledger, keys
from shared.settings import QueueSettings

NEXT, WARM, COUNTS = (f"{keys.PREFIX}{name}" for name in ("next_adapters", "warm", "warm_counts"))
SLOTS = ("gpu-0", "gpu-1")

_ids = itertools.count()


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(), clock_ms=clock)


@pytest.fixture
def spec(item):
    def make(adapter: str) -> ItemSpec:
        return item(adapters=(AdapterRef(path="a.safetensors", sha256=adapter, size_bytes=1, multiplier=1.0),))

    return make


def accept(ledger, *specs):
    return ledger.accept(f"job-{next(_ids)}", specs, record={}).job_id


def peek(ledger, slot, warm="base"):
    return ledger.peek_next(["flux2"], slot=slot, warm=warm)


def claim(ledger, slot, warm="base"):
    return ledger.claim_next(["flux2"], slot=slot, boot="boot", warm=warm)


def beat(ledger, slot, warm="base"):
    ledger.workers.beat(slot, {"model": "flux2", "warm": warm})


def test_two_slots_in_lockstep_merge_each_adapter_once(ledger, spec):
    """32 images over eight adapters in turn; both slots have the first one merged.

    Six adapters are merged by one slot each, and the last one by both, since the other slot has nothing else to do.
    """
    warm, swaps = dict.fromkeys(SLOTS, spec("a0").adapter_key), 0
    for slot in SLOTS:
        beat(ledger, slot, warm[slot])
    accept(ledger, *[spec(f"a{number % 8}") for number in range(32)])

    while ledger.queue_length("flux2"):
        claims = {slot: claim(ledger, slot, warm[slot]) for slot in SLOTS}
        for slot, claimed in claims.items():
            swaps += claimed.spec.adapter_key != ledger.redis.hget(WARM, slot)
            beat(ledger, slot, claimed.spec.adapter_key)
        for slot, claimed in claims.items():
            prepared = peek(ledger, slot, claimed.spec.adapter_key)
            # The swap begins before the image is done, so the next claim prefers the prepared adapter.
            warm[slot] = prepared.adapter_key if prepared else claimed.spec.adapter_key
        for claimed in claims.values():
            ledger.commit(claimed, None)

    assert swaps == 8


def test_a_slot_claims_the_item_that_it_prepared(ledger, spec):
    prepared, other = accept(ledger, spec("aa")), accept(ledger, spec("bb"))
    peek(ledger, "gpu-0")

    assert [claim(ledger, slot).job_id for slot in ("gpu-1", "gpu-0")] == [other, prepared]


def test_a_claimed_adapter_is_left_to_its_slot_before_its_next_heartbeat(ledger, spec):
    beat(ledger, "gpu-0")
    claimed = accept(ledger, spec("aa"))
    assert claim(ledger, "gpu-0").job_id == claimed
    left, free = accept(ledger, spec("aa")), accept(ledger, spec("bb"))

    assert claim(ledger, "gpu-1").job_id == free
    assert claim(ledger, "gpu-1").job_id == left


def test_the_only_queued_adapter_is_claimed_by_everyone_whoever_prepares_it(ledger, spec):
    accept(ledger, spec("aa"), spec("aa"))
    peek(ledger, "gpu-0")

    assert [claim(ledger, slot).spec for slot in ("gpu-1", "gpu-0")] == [spec("aa")] * 2


def test_an_adapter_that_a_slot_prepared_in_vain_is_free_again(ledger, clock, spec):
    def prepare_in_vain(slot):
        beat(ledger, slot)
        job = accept(ledger, spec("aa"))
        peek(ledger, slot)
        ledger.cancel(job)

    def claim_another(slot):
        accept(ledger, spec("cc"))
        claim(ledger, slot)

    def die(_slot):
        clock.advance(16)

    for stop in (claim_another, ledger.workers.remove, die):
        prepare_in_vain("gpu-0")
        stop("gpu-0")
        oldest, other = accept(ledger, spec("aa")), accept(ledger, spec("bb"))

        assert [claim(ledger, "gpu-1").job_id for _ in range(2)] == [oldest, other]
        ledger.workers.remove("gpu-1")


def test_entries_of_slots_that_an_earlier_version_removed_or_runs_are_dropped(ledger, spec):
    for slot in SLOTS:
        beat(ledger, slot)
        accept(ledger, spec("aa"))
        claim(ledger, slot)
    ledger.redis.zrem(keys.SLOTS, "gpu-0")
    ledger.redis.zadd(keys.SLOTS, {"gpu-1": ledger.now_ms() + 1})

    # One claim of six looks at two random entries.
    for _ in range(200):
        accept(ledger, spec("bb"))
        claim(ledger, "gpu-2")

    assert ledger.redis.hgetall(NEXT) == {"gpu-2": spec("bb").adapter_key}
    counts = ledger.redis.hgetall(COUNTS)
    assert counts == {"base": "1", spec("bb").adapter_key: "1"}


def test_the_counts_are_those_of_both_indexes(ledger, spec):
    """After each of many steps; a slot that merges what it prepared counts twice, and nobody else for it."""
    accept(ledger, *[spec(f"a{number % 3}") for number in range(30)])
    steps = itertools.cycle((peek, claim, beat))
    for number in range(60):
        slot = f"gpu-{number % 4}"
        next(steps)(ledger, slot, spec(f"a{number % 5}").adapter_key)
        if number % 13 == 0:
            ledger.workers.remove(slot)

        names = [*ledger.redis.hvals(WARM), *ledger.redis.hvals(NEXT)]
        assert ledger.redis.hgetall(COUNTS) == {name: str(names.count(name)) for name in set(names)}
