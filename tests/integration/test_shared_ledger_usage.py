"""What attempts used is counted in the step that ends them, on a real Redis with a clock that the test moves."""

from datetime import date

import pytest

from shared.errors import InvalidRequest
from shared.job import AdapterRef, ItemError, Progress
from shared.ledger import Ledger, Submission, keys, usage_reader
from shared.ledger.usage_rows import Usage
from shared.settings import QueueSettings

STEP = Progress(stage="denoise", step=1, steps=2)
BROKEN = ItemError(code="run_failed", message="it broke", retryable=True)
# The day of the test's clock, and the pixel-steps of an item of 64x64 in two steps.
DAY, DAYS = date(2023, 11, 14), 19_675
STEPS = 64 * 64 * 2


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(lease_ttl_s=30, max_attempts=2, cap=20, usage_days=9), clock_ms=clock)


@pytest.fixture
def claim(ledger, item):
    """Accept an item and claim it."""
    numbers = iter(range(100))

    def accept_and_claim(*, tenant="default", key_id="", **fields):
        ledger.accept_all(
            [Submission(f"job-{next(numbers)}", [item(**fields)], record={}, tenant=tenant, key_id=key_id)]
        )
        return ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base")

    return accept_and_claim


def rows(ledger, **options):
    return {
        (str(row.day), row.tenant, row.key_id, row.model, row.adapters): row.usage
        for row in ledger.usage.rows(DAY, date(2023, 11, 20), **options)
    }


ROW = (str(DAY), "default", "", "flux2", "base")


def test_an_image_counts_once_however_often_its_commit_is_sent(ledger, claim, make_result):
    claimed = claim()

    assert ledger.commit(claimed, make_result(), gpu_s=3.4567) == "committed"
    assert ledger.commit(claimed, make_result(), gpu_s=3.4567) == "repeated"
    assert ledger.commit(claimed, BROKEN, gpu_s=3.4567) == "stale"

    assert rows(ledger) == {ROW: Usage(images=1, pixel_steps=STEPS, gpu_ms=3457)}
    assert ledger.usage.totals() == {("default", "flux2"): Usage(images=1, pixel_steps=STEPS, gpu_ms=3457)}


def test_a_worker_that_lost_its_lease_counts_nothing_and_its_time_until_then_gave_no_image(
    ledger, clock, claim, make_result
):
    late = claim()
    assert ledger.renew(late, STEP, gpu_s=2.5) == "ok"
    for _ in range(7):
        clock.advance(5)
        ledger.reap()
    current = ledger.claim_next(["flux2"], slot="gpu-1", boot="boot", warm="base")

    assert ledger.commit(late, make_result(), gpu_s=40) == "stale"
    assert ledger.commit(current, make_result(), gpu_s=4) == "committed"
    assert ledger.commit(late, make_result(), gpu_s=40) == "stale"

    assert rows(ledger) == {ROW: Usage(images=1, pixel_steps=STEPS, gpu_ms=4000, wasted_gpu_ms=2500)}


@pytest.mark.parametrize("outcome", [BROKEN, None])
def test_an_attempt_without_an_image_counts_its_time_apart(ledger, claim, outcome):
    ledger.commit(claim(), outcome, gpu_s=1.5)

    assert rows(ledger) == {ROW: Usage(wasted_gpu_ms=1500)}


def test_an_image_of_a_canceled_job_counts_as_waste(ledger, claim, make_result):
    claimed = claim()
    ledger.cancel(claimed.job_id)

    assert ledger.commit(claimed, make_result(), gpu_s=1.5) == "canceled"

    assert rows(ledger) == {ROW: Usage(wasted_gpu_ms=1500)}


def test_each_attempt_that_is_given_back_counts_its_own_time(ledger, claim, make_result):
    claimed = claim()
    ledger.renew(claimed, STEP, gpu_s=1)
    ledger.release(claimed, "drain")
    # The time of the attempt before does not count again.
    ledger.release(ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base"), "outage")
    ledger.release(ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base"), "retry", gpu_s=0.2)
    again = ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base")
    ledger.renew(again, STEP, gpu_s=0.03)
    assert ledger.reclaim(slot="gpu-0", boot="another") == 0

    assert rows(ledger) == {ROW: Usage(wasted_gpu_ms=1230)}
    assert ledger.job(claimed.job_id).items[0].error.code == "worker_lost"


def test_an_ended_item_keeps_nothing_of_it(ledger, redis_client, claim, make_result):
    claimed = claim()
    ledger.renew(claimed, STEP, gpu_s=1)

    ledger.commit(claimed, make_result())

    assert rows(ledger)[ROW].gpu_ms == 1000
    assert "gpu_ms" not in redis_client.hgetall(keys.item(claimed.item_id))


def test_rows_are_by_day_tenant_key_model_and_adapters(ledger, clock, claim, make_result):
    style = AdapterRef(path="b.safetensors", sha256="00", size_bytes=1, multiplier=0.5)
    other = AdapterRef(path="a.safetensors", sha256="01", size_bytes=1, multiplier=1)
    ledger.commit(claim(tenant="studio", key_id="0123456789ab", adapters=(style, other)), make_result(), gpu_s=1)
    stronger = style.model_copy(update={"multiplier": 1.5})
    ledger.commit(claim(tenant="studio", key_id="0123456789ab", adapters=(other, stronger)), make_result(), gpu_s=1)
    ledger.commit(claim(tenant="studio"), make_result(), gpu_s=1)
    # At 2023-11-14 22:13:20; the attempt ends on the next day.
    late = claim(tenant="lab")
    clock.advance(2 * 3600)
    ledger.commit(late, make_result(), gpu_s=1)

    one, both = Usage(1, STEPS, 1000), "a.safetensors + b.safetensors"
    assert rows(ledger) == {
        ("2023-11-14", "studio", "0123456789ab", "flux2", both): one + one,
        ("2023-11-14", "studio", "", "flux2", "base"): one,
        ("2023-11-15", "lab", "", "flux2", "base"): one,
    }
    assert set(rows(ledger, tenant="lab")) == {("2023-11-15", "lab", "", "flux2", "base")}
    assert ledger.usage.today() == date(2023, 11, 15)
    assert ledger.usage.totals() == {("studio", "flux2"): one + one + one, ("lab", "flux2"): one}


def test_a_days_rows_expire_and_the_totals_do_not(ledger, redis_client, claim, make_result):
    ledger.commit(claim(), make_result())

    for name in (keys.usage(DAYS, "default"), keys.usage_tenants(DAYS)):
        assert redis_client.ttl(name) == pytest.approx(10 * 86_400, abs=5)
    assert redis_client.ttl(keys.USAGE_TOTALS) == -1


def test_the_rows_of_a_tenant_and_a_day_are_bounded_and_their_sum_is_not(ledger, redis_client, claim, make_result):
    def commit_with(path, key_id=""):
        ref = AdapterRef(path=path, sha256="00", size_bytes=1, multiplier=1)
        ledger.commit(claim(adapters=(ref,), key_id=key_id), make_result(), gpu_s=1)

    commit_with("early")
    redis_client.hset(keys.usage(DAYS, "default"), mapping={f"k|flux2|{n}": "1 1 1 1" for n in range(999)})
    for path in ("early", "late", "later"):
        commit_with(path)
    redis_client.hset(keys.usage(DAYS, "default"), mapping={f"l|flux2|{n}": "1 1 1 1" for n in range(999)})
    for key_id in ("", "key-1", "key-2"):
        commit_with("latest", key_id)

    found = {name[2:]: usage.images for name, usage in rows(ledger).items() if name[2] not in ("k", "l")}
    assert found == {("", "flux2", "early"): 2, ("", "flux2", "other"): 3, ("other", "other", "other"): 2}
    assert redis_client.hlen(keys.usage(DAYS, "default")) == 2001


def test_a_number_that_a_later_version_counts_stays(ledger, redis_client, claim, make_result):
    redis_client.hset(keys.usage(DAYS, "default"), "|flux2|base", "1 8192 10 20 77")

    ledger.commit(claim(), make_result(), gpu_s=0.005)

    assert redis_client.hget(keys.usage(DAYS, "default"), "|flux2|base") == "2 16384 15 20 77"


def test_sums_beyond_what_lua_writes_without_an_exponent_stay_whole(ledger, redis_client, claim, make_result):
    redis_client.hset(keys.usage(DAYS, "default"), "|flux2|base", f"1 {2**52} 10 20")

    ledger.commit(claim(), make_result(), gpu_s=0)

    assert redis_client.hget(keys.usage(DAYS, "default"), "|flux2|base") == f"2 {2**52 + STEPS} 10 20"


def test_a_job_of_an_earlier_version_counts_with_what_its_worker_states(ledger, redis_client, claim, make_result):
    committed, lost = claim(adapters=()), claim()
    for claimed in (committed, lost):
        redis_client.hdel(keys.job(claimed.job_id), "adapters")

    ledger.commit(committed, make_result(), gpu_s=1)
    ledger.release(lost, "retry", gpu_s=2)

    assert rows(ledger) == {ROW: Usage(1, STEPS, 1000), (*ROW[:4], "other"): Usage(wasted_gpu_ms=2000)}


def test_more_rows_than_a_call_reads_are_refused(ledger, claim, make_result, monkeypatch):
    monkeypatch.setattr(usage_reader, "_MOST_ROWS", 1)
    ledger.commit(claim(), make_result())
    assert len(rows(ledger)) == 1
    ledger.commit(claim(tenant="studio"), make_result())

    with pytest.raises(InvalidRequest, match=r"2 rows .* ask for fewer days, or for one tenant"):
        rows(ledger)


def test_more_tenants_than_a_call_reads_rows_are_refused_before_their_rows_are_looked_for(
    ledger, redis_client, monkeypatch
):
    monkeypatch.setattr(usage_reader, "_MOST_ROWS", 1)
    redis_client.sadd(keys.usage_tenants(DAYS), "lab", "studio")

    with pytest.raises(InvalidRequest, match=r"at least 2 rows .* ask for fewer days, or for one tenant"):
        rows(ledger)


def test_a_call_for_one_tenant_is_not_sent_to_one_tenant(ledger, redis_client, monkeypatch):
    monkeypatch.setattr(usage_reader, "_MOST_ROWS", 1)
    redis_client.hset(keys.usage(DAYS, "lab"), mapping={"|flux2|a": "1 1 1 1", "|flux2|b": "1 1 1 1"})

    with pytest.raises(InvalidRequest, match=r"ask for fewer days$"):
        rows(ledger, tenant="lab")
