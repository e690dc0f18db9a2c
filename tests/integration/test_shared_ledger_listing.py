"""The listing finds every job page by page, and no page looks at more than a bounded number of jobs."""

import random

import pytest

from shared.ledger import Ledger, keys, listing
from shared.settings import QueueSettings

STATES = ("queued", "running", "succeeded", "failed", "canceled")


@pytest.fixture
def ledger(redis_client):
    return Ledger(redis_client, QueueSettings())


def store(ledger, jobs):
    """Write records of jobs, (state, model) each, as the scripts leave them; the accept orders have gaps."""
    with ledger.redis.pipeline(transaction=False) as pipe:
        for index, (state, model) in enumerate(jobs):
            counts = {**dict.fromkeys(STATES, 0), state: 1}
            record = {"state": state, "model": model, "items": 1, "accepted_ms": 1000 + index, **counts}
            pipe.hset(keys.job(f"job-{index}"), mapping=record)
            pipe.zadd(keys.JOBS, {f"job-{index}": 3 * index})
        pipe.execute()


def walk(ledger, *, limit, **filters):
    """Return the ids on each page, until the listing ends."""
    pages, before = [], None
    while True:
        page = ledger.jobs(before=before, limit=limit, **filters)
        pages.append([job.job_id for job in page.jobs])
        if page.next_before is None:
            return pages
        assert before is None or page.next_before < before
        before = page.next_before


def test_a_page_looks_at_2500_jobs_in_5_round_trips_and_the_next_one_goes_on_from_there(ledger):
    store(ledger, [("failed", "flux2"), *[("succeeded", "flux2")] * 2600])
    ledger.redis.config_resetstat()

    first = ledger.jobs(before=None, limit=50, state="failed")
    calls = {name: stats["calls"] for name, stats in ledger.redis.info("commandstats").items()}
    second = ledger.jobs(before=first.next_before, limit=50, state="failed")

    assert first.jobs == ()
    assert first.next_before is not None
    assert calls["cmdstat_hget"] == 2500
    # The first call may find that Redis does not know the script yet.
    assert 5 <= calls["cmdstat_evalsha"] <= 6
    assert [job.job_id for job in second.jobs] == ["job-0"]
    assert second.next_before is None


def test_a_page_without_a_filter_reads_the_jobs_that_it_returns_and_one_more(ledger):
    store(ledger, [("succeeded", "flux2")] * 300)
    ledger.redis.config_resetstat()

    page = ledger.jobs(before=None, limit=7)

    assert [job.job_id for job in page.jobs] == [f"job-{index}" for index in range(299, 292, -1)]
    assert ledger.redis.info("commandstats")["cmdstat_hmget"]["calls"] == 8


@pytest.mark.parametrize("limit", [1, 3, 20])
@pytest.mark.parametrize("filters", [{}, {"state": "failed"}, {"model": "b"}, {"state": "failed", "model": "b"}])
def test_following_the_cursors_finds_each_matching_job_once(ledger, monkeypatch, limit, filters):
    monkeypatch.setattr(listing, "_JOBS_PER_STEP", 4)
    monkeypatch.setattr(listing, "_STEPS_PER_PAGE", 2)
    draw = random.Random(16)
    jobs = [(draw.choice(STATES), draw.choice("aab")) for _ in range(70)]
    store(ledger, jobs)
    # A job may be half forgotten.
    ledger.redis.delete(keys.job("job-60"), keys.job("job-10"))

    pages = walk(ledger, limit=limit, **filters)

    expected = [
        f"job-{index}"
        for index, (state, model) in reversed(list(enumerate(jobs)))
        if index not in (10, 60) and filters.get("state", state) == state and filters.get("model", model) == model
    ]
    assert [job_id for page in pages for job_id in page] == expected
    assert max(len(page) for page in pages) <= limit


def test_a_full_page_is_the_last_one_if_no_older_job_matches(ledger):
    store(ledger, [("succeeded", "flux2"), ("failed", "flux2"), ("failed", "flux2"), ("queued", "flux2")])

    assert walk(ledger, limit=2, state="failed") == [["job-2", "job-1"]]
    assert walk(ledger, limit=4) == [["job-3", "job-2", "job-1", "job-0"]]
