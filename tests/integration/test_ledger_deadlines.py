"""Deadlines of jobs: what waits for a worker then is canceled, and what runs finishes."""

import pytest

from shared.job import ItemError, State
from shared.ledger import Ledger, keys
from shared.settings import QueueSettings

BROKEN = ItemError(code="run_failed", message="it broke", retryable=True)
DEADLINES = f"{keys.PREFIX}deadlines"


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(lease_ttl_s=30, max_attempts=3), clock_ms=clock)


@pytest.fixture
def claim(ledger):
    return lambda: ledger.claim_next(("flux2",), slot="gpu-0", boot="boot", warm="base")


@pytest.fixture(params=[True, False], ids=["compact", "whole"])
def accept(request, ledger, item):
    def store(job_id, count=1, **options):
        ledger.accept(job_id, [item()] * count, record={"warnings": []}, compact=request.param, **options)

    return store


def errors(ledger, job_id):
    return [item.error and item.error.code for item in ledger.job(job_id).items]


def test_a_deadline_cancels_what_waits_and_leaves_what_runs(ledger, clock, accept, claim, make_result, redis_client):
    accept("job", 3, deadline_s=60, webhook_url="https://example.com/hook")
    running = claim()
    clock.advance(59)
    assert ledger.expire_deadlines() == 0
    clock.advance(1)

    assert ledger.expire_deadlines() == 2

    assert [item.state for item in ledger.job("job").items] == [State.RUNNING, State.CANCELED, State.CANCELED]
    assert errors(ledger, "job") == [None, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"]
    assert ledger.commit(running, make_result()) == "committed"
    job = ledger.job("job")
    assert job.state is State.CANCELED
    assert not job.cancel_requested
    assert job.deadline_ms == job.accepted_ms + 60_000
    assert job.items[0].result is not None
    assert ledger.totals().deadline_exceeded == 2
    # The message about the end is sent, and nothing is left to look at.
    assert redis_client.zrange(keys.OUTBOX, 0, -1) == ["job"]
    assert not redis_client.exists(DEADLINES)


def test_a_job_that_ends_in_time_is_forgotten_by_the_deadlines(ledger, clock, accept, claim, make_result, redis_client):
    accept("done", deadline_s=60)
    accept("canceled", deadline_s=60)
    ledger.commit(claim(), make_result())
    ledger.cancel("canceled")

    assert not redis_client.exists(DEADLINES)
    clock.advance(61)
    assert ledger.expire_deadlines() == 0
    assert errors(ledger, "canceled") == [None]


def test_a_claim_starts_no_item_past_its_deadline_however_many_there_are(ledger, clock, accept, claim):
    accept("late", 45, deadline_s=10, priority=0)
    accept("in-time", deadline_s=60)
    clock.advance(10)

    assert ledger.peek_next(("flux2",), slot="gpu-0", warm="base") is None
    claimed = claim()

    assert claimed.job_id == "in-time"
    assert set(errors(ledger, "late")) == {"DEADLINE_EXCEEDED"}
    assert claim() is None


@pytest.mark.parametrize("reason", ["drain", "retry", "later"])
def test_an_item_that_comes_back_after_the_deadline_is_not_tried_again(ledger, clock, accept, claim, reason):
    accept("job", deadline_s=10)
    running = claim()
    clock.advance(10)

    assert ledger.release(running, reason, BROKEN) == "canceled"

    assert errors(ledger, "job") == ["DEADLINE_EXCEEDED"]
    assert ledger.job("job").state is State.CANCELED


def test_a_cancel_and_the_last_attempt_count_before_the_deadline(ledger, clock, accept, claim):
    accept("canceled", deadline_s=10)
    accept("failed", deadline_s=10)
    first, second = claim(), claim()
    ledger.cancel("canceled")
    clock.advance(10)
    for _ in range(2):
        # Attempts before the deadline.
        ledger.redis.hincrby(keys.item("failed:0"), "attempt", 1)

    assert ledger.release(first, "retry", BROKEN) == "canceled"
    assert ledger.release(second, "retry", BROKEN) == "failed"

    assert errors(ledger, "canceled") == [None]
    assert errors(ledger, "failed") == ["run_failed"]


def test_an_item_that_an_earlier_version_requeues_too_late_is_found_again(ledger, clock, accept, claim, redis_client):
    accept("job", deadline_s=10)
    running = claim()
    clock.advance(10)
    assert ledger.expire_deadlines() == 0
    # Its scripts do not look at the deadline.
    deadline_ms = redis_client.hget(keys.job("job"), "deadline_ms")
    redis_client.hdel(keys.job("job"), "deadline_ms")
    assert ledger.release(running, "drain", BROKEN) == "queued"
    redis_client.hset(keys.job("job"), "deadline_ms", deadline_ms)

    clock.advance(6)

    assert ledger.expire_deadlines() == 1
    assert errors(ledger, "job") == ["DEADLINE_EXCEEDED"]


def test_a_job_that_an_earlier_version_ended_or_forgot_is_dropped_from_the_deadlines(
    ledger, clock, accept, redis_client
):
    accept("gone", deadline_s=10)
    ledger.cancel("gone")
    redis_client.zadd(DEADLINES, {"gone": clock.ms, "forgotten": clock.ms})

    assert ledger.expire_deadlines() == 0

    assert not redis_client.exists(DEADLINES)


def test_thousands_of_late_items_are_canceled_in_steps(ledger, clock, item):
    for number in range(5):
        ledger.accept(f"job-{number}", [item()] * 500, record={}, deadline_s=10)
    clock.advance(10)

    assert ledger.expire_deadlines() == 2500

    assert ledger.queue_length("flux2") == 0
