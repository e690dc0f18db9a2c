"""Each claim states why its item was chosen and not the oldest one of the pool."""

import itertools

import pytest

from shared.job import AdapterRef
from shared.ledger import Ledger, keys
from shared.settings import QueueSettings

_ids = itertools.count()


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(wait_bound_s=60, lease_ttl_s=30), clock_ms=clock)


@pytest.fixture
def accept(ledger, item):
    def accept(adapter: str = "aa", **options) -> str:
        ref = AdapterRef(path="a.safetensors", sha256=adapter, size_bytes=1, multiplier=1.0)
        return ledger.accept(f"job-{next(_ids)}", [item(adapters=(ref,))], record={}, **options).job_id

    return accept


@pytest.fixture
def key_of(item):
    return lambda adapter: (
        item(adapters=(AdapterRef(path="a.safetensors", sha256=adapter, size_bytes=1, multiplier=1.0),)).adapter_key
    )


def claim(ledger, *, warm="base"):
    return ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm=warm)


def claimed(ledger, **options):
    claimed = claim(ledger, **options)
    return claimed.job_id, claimed.why


def test_an_item_that_waited_past_the_bound_is_overdue_whatever_else_applies(ledger, clock, accept, key_of):
    old = accept("aa", priority=9, tenant="a")
    clock.advance(61)
    accept("bb", priority=0, tenant="b")

    assert claimed(ledger, warm=key_of("aa")) == (old, "overdue")


def test_an_item_that_passes_the_oldest_one_of_lower_priority_has_priority(ledger, accept, key_of):
    accept("aa", priority=5)
    urgent = accept("bb", priority=0, tenant="b")

    assert claimed(ledger, warm=key_of("bb")) == (urgent, "priority")


def test_an_item_that_passes_the_oldest_one_of_another_tenant_has_its_share(ledger, clock, accept, key_of):
    first, passed = accept("aa", tenant="a"), accept("aa", tenant="a")
    turn = accept("aa", tenant="b")

    assert claimed(ledger) == (first, "cold")
    clock.advance(1)
    assert claimed(ledger, warm=key_of("aa")) == (turn, "share")
    assert claimed(ledger, warm=key_of("aa")) == (passed, "warm")


def test_an_item_that_passes_an_older_one_of_its_tenant_is_warm(ledger, accept, key_of):
    older = accept("aa")
    warm = accept("bb")

    assert claimed(ledger, warm=key_of("bb")) == (warm, "warm")
    assert claimed(ledger, warm=key_of("bb")) == (older, "cold")


def test_the_oldest_item_of_the_highest_priority_passes_nothing(ledger, accept):
    urgent, later = accept("aa", priority=0), accept("bb", priority=5, tenant="b")

    assert [claimed(ledger), claimed(ledger)] == [(urgent, "cold"), (later, "cold")]


def test_an_item_that_leaves_an_older_one_to_the_slot_that_has_it_warm_is_cold(ledger, accept, key_of):
    ledger.workers.beat("gpu-1", {"warm": key_of("aa")})
    accept("aa")
    free = accept("bb")

    assert claimed(ledger) == (free, "cold")


def test_an_item_in_the_whole_form_is_warm_by_its_whole_adapter_key(ledger, accept, key_of):
    long = "c" * 64
    warm = accept(long, compact=False)

    assert claimed(ledger, warm=key_of(long)) == (warm, "warm")


def test_the_reason_stays_with_the_item_and_each_claim_counts_once(ledger, clock, accept, key_of, make_result):
    jobs = [accept("aa"), accept("bb", priority=0)]
    claims = [claim(ledger), claim(ledger, warm=key_of("aa"))]

    ledger.commit(claims[0], make_result())
    ledger.release(claims[1], "retry")

    assert [ledger.job(job).items[0].why for job in reversed(jobs)] == ["priority", None]
    assert claim(ledger).why == "cold"
    assert ledger.totals().claims == {"overdue": 0, "priority": 1, "share": 0, "warm": 1, "cold": 1}


def test_a_claim_that_is_sent_twice_has_one_reason_and_counts_once(ledger, accept, monkeypatch):
    job = accept("aa")
    run = ledger._session.run

    def sent_twice(script, **arguments):
        run(script, **arguments)
        return run(script, **arguments)

    monkeypatch.setattr(ledger._session, "run", sent_twice)

    assert claimed(ledger) == (job, "cold")
    assert ledger.totals().claims["cold"] == 1


def test_a_queue_whose_shares_were_lost_is_claimed_from_its_head(ledger, accept, key_of):
    oldest = accept("aa")
    ledger.redis.delete(f"{keys.PREFIX}shares:flux2")

    assert claimed(ledger, warm=key_of("aa")) == (oldest, "warm")
