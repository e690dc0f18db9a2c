"""What watchers of jobs read: small parts of many jobs, in both forms of storage."""

import pytest

from shared.job import AdapterRef, ItemError, Progress, State
from shared.ledger import Ledger, Submission, live_jobs, queue_reader

POOLS = ("flux2",)


@pytest.fixture
def ledger(redis_client, settings):
    return Ledger(redis_client, settings().queue)


@pytest.fixture
def accept(ledger, item):
    def store(job_id, items=2, tenant="acme", compact=True, **changes):
        specs = [item(prompt=f"prompt {index}", **changes) for index in range(items)]
        ledger.accept_all([Submission(job_id, specs, record={}, tenant=tenant, compact=compact)])
        return job_id

    return store


@pytest.fixture
def claim(ledger):
    return lambda slot="gpu-0": ledger.claim_next(POOLS, slot=slot, boot="boot", warm="base")


def test_the_moves_of_a_job_are_those_of_its_view(ledger, accept, claim):
    job = accept("job", items=3)
    failed = claim()
    ledger.commit(failed, ItemError(code="run_failed", message="no", retryable=False))
    ledger.renew(claim(), Progress(stage="denoise", step=1, steps=2))

    found = ledger.live_jobs.read({job: {0, 1}, "nothing": {0}})

    view, moves = ledger.job(job), found[job]
    assert found["nothing"] is None
    for name in ("state", "cancel_requested", "started_ms", "finished_ms", "webhook"):
        assert getattr(moves, name) == getattr(view, name), name
    assert {state: count for state, count in moves.counts.items() if count} == {
        State.QUEUED: 1,
        State.RUNNING: 1,
        State.FAILED: 1,
    }
    for index, item in moves.items.items():
        assert (item.state, item.attempt) == (view.items[index].state, view.items[index].attempt)
    assert moves.items[1].progress == Progress(stage="denoise", step=1, steps=2)
    outlook = ledger.live_jobs.outlooks({job: moves}, items={job: 3})[job]
    assert outlook.queue_position == view.queue_position == 0


@pytest.mark.parametrize("compact", [True, False])
def test_the_outline_has_the_first_prompt_in_both_forms(ledger, accept, compact):
    ref = AdapterRef(path="cat.safetensors", sha256="0", size_bytes=1, multiplier=1.0)
    job = accept("job", compact=compact, adapters=(ref,))

    outline = ledger.live_jobs.outlines([job, "nothing"])

    assert list(outline) == [job]
    assert (outline[job].spec.prompt, outline[job].adapters) == ("prompt 0", "cat.safetensors")
    assert (outline[job].tenant, outline[job].items, outline[job].priority) == ("acme", 2, 5)


def test_the_outline_of_a_canceled_job_has_no_prompt(ledger, accept):
    job = accept("job")
    ledger.cancel(job)

    assert ledger.live_jobs.outlines([job])[job].spec is None


def test_the_first_failure_is_found_among_the_results(ledger, accept, claim, make_result):
    job = accept("job", items=3)
    ledger.commit(claim(), make_result())
    for message in ("first", "second"):
        ledger.commit(claim(), ItemError(code="run_failed", message=message, retryable=False))
    fine = accept("fine")
    ledger.commit(claim(), make_result())

    assert ledger.live_jobs.failures([job, fine]) == {job: "first"}


def test_new_jobs_are_those_after_the_newest_that_is_known(ledger, accept):
    for job in ("one", "two"):
        accept(job)
    accept("theirs", tenant="other")
    found = list(ledger.live_jobs.newest(tenant="acme", after=None))
    assert [job.job_id for job in found] == ["two", "one"]
    accept("three")

    later = list(ledger.live_jobs.newest(tenant="acme", after=found[0].order))

    assert [job.job_id for job in later] == ["three"]
    assert [job.job_id for job in ledger.live_jobs.newest(tenant=None, after=found[1].order)] == [
        "three",
        "theirs",
        "two",
    ]


def test_running_items_are_found_up_to_a_bound(ledger, accept, claim, monkeypatch):
    accept("job", items=3)
    for slot in ("gpu-0", "gpu-1"):
        claim(slot)
    assert ledger.live_jobs.running() == {"job": [0, 1]}

    monkeypatch.setattr(live_jobs, "_LEASES_READ", 1)

    assert len(ledger.live_jobs.running()["job"]) == 1


def test_the_sums_of_the_queue_are_those_of_its_overview(ledger, accept, claim, make_result, monkeypatch):
    monkeypatch.setattr(queue_reader, "_TENANTS_PER_STEP", 2)
    assert ledger.queue.sums([None])[None].pace_s is None
    assert ledger.live_jobs.sequence() == 0
    accept("job", items=3)
    accept("theirs", tenant="other", items=2)
    ledger.commit(claim(), make_result())
    claim()

    sums = ledger.queue.sums(["acme", None, "other", "nobody"])

    assert list(sums) == [None, "acme", "other", "nobody"]
    for tenant, found in sums.items():
        overview = ledger.queue.overview(tenant=tenant)
        assert (found.queued, found.running) == (overview.queued, overview.running), tenant
        assert found.images_per_minute == pytest.approx(overview.images_per_minute, abs=0.1)
    assert sums["other"].pace_s >= 0
    assert sums[None].images_per_minute > 0
    assert ledger.live_jobs.sequence() == 5
