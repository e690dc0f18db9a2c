"""The ledger's rules, on a real Redis, with a clock that the test moves."""

import itertools
import json

import pytest

from shared.errors import IdempotencyKeyReused, JobTooLarge, LedgerUnavailable, QueueFull, StorageOutageReported
from shared.job import AdapterRef, ItemError, ItemSpec, Progress, State
from shared.ledger import Ledger, Submission, keys
from shared.settings import QueueSettings

STEP = Progress(stage="denoise", step=3, steps=25)
BROKEN = ItemError(code="run_failed", message="it broke", retryable=True)


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(lease_ttl_s=30, max_attempts=2, cap=20), clock_ms=clock)


def spec(adapter: str = "aa", *, multiplier: float = 1.0, model: str = "flux2", engine: str = "exact") -> ItemSpec:
    ref = AdapterRef(path=f"{adapter}.safetensors", sha256=adapter, size_bytes=1, multiplier=multiplier)
    return ItemSpec(
        model=model,
        prompt="a cat",
        neg="",
        width=64,
        height=64,
        requested_width=64,
        requested_height=64,
        seed=42,
        num_inference_steps=25,
        guidance_scale=4.0,
        adapters=(ref,),
        output_format="png",
        engine=engine,
    )


_ids = itertools.count()


def accept(ledger, *specs, **options):
    return ledger.accept(f"job-{next(_ids)}", specs or [spec()], record={}, **options).job_id


def claim(ledger, slot="gpu-0", *, warm="base", boot="boot-1", pools=("flux2",)):
    expected = ledger.peek_next(pools, slot=slot, warm=warm)
    claimed = ledger.claim_next(pools, slot=slot, boot=boot, warm=warm)
    assert expected == (claimed and claimed.spec)
    return claimed


def wait_under_passes(ledger, clock, seconds):
    """Let time pass while a caretaker reaps each 5 s or earlier; return the result of its last pass."""
    whole, rest = divmod(seconds, 5)
    for pause_s in (*[5] * whole, rest):
        clock.advance(pause_s)
        reaped = ledger.reap()
    return reaped


def states(ledger, job_id):
    return [item.state for item in ledger.job(job_id).items]


def leftovers(client):
    """Keys that must be empty once every job has ended."""
    return {
        name: client.type(name)
        for name in client.scan_iter(f"{keys.PREFIX}*")
        if name.removeprefix(keys.PREFIX).split(":")[0] in {"pending", "shares", "lanes", "lane", "leases", "busy"}
    }


def test_an_accepted_job_is_claimed_renewed_and_committed(ledger, clock, make_result):
    job_id = accept(ledger)
    assert ledger.job(job_id).state is State.QUEUED

    clock.advance(2)
    claimed = claim(ledger)
    assert (claimed.job_id, claimed.index, claimed.fence, claimed.attempt, claimed.queued_s) == (job_id, 0, 1, 1, 2.0)
    assert claimed.spec == spec()
    assert ledger.renew(claimed, STEP) == "ok"
    running = ledger.job(job_id)
    assert running.state is State.RUNNING
    assert running.items[0].progress == STEP

    assert ledger.commit(claimed, make_result()) == "committed"

    done = ledger.job(job_id)
    assert done.state is State.SUCCEEDED
    assert done.items[0].result == make_result()
    assert done.finished_ms - done.accepted_ms == 2000
    assert leftovers(ledger.redis) == {}


def test_an_empty_queue_gives_no_claim(ledger):
    assert claim(ledger) is None


def test_an_item_is_claimed_once_however_many_wake_ups_arrive(ledger):
    accept(ledger)

    claims = [claim(ledger, slot=f"gpu-{n}") for n in range(3)]

    assert [c is not None for c in claims] == [True, False, False]


def test_a_worker_whose_lease_ran_out_cannot_overwrite_the_result(ledger, clock, make_result):
    job_id = accept(ledger)
    late = claim(ledger, "gpu-0")
    clock.advance(31)
    assert ledger.reap().requeued == {"flux2": 1}
    current = claim(ledger, "gpu-1")
    assert current.fence == late.fence + 1

    assert ledger.renew(late, STEP) == "lost"
    assert ledger.commit(late, make_result("late.png")) == "stale"
    assert ledger.release(late, "drain") == "stale"
    assert ledger.commit(current, make_result("current.png")) == "committed"

    assert ledger.job(job_id).items[0].result.key == "current.png"


def test_a_commit_whose_reply_was_lost_can_be_repeated_but_not_changed(ledger, make_result):
    accept(ledger)
    claimed = claim(ledger)
    ledger.commit(claimed, make_result())

    assert ledger.commit(claimed, make_result()) == "repeated"
    assert ledger.commit(claimed, BROKEN) == "stale"
    assert ledger.job(claimed.job_id).state is State.SUCCEEDED
    assert ledger.redis.hget(keys.item(claimed.item_id), "commits") == "1"


def test_renewal_keeps_a_lease_alive_past_its_first_ttl(ledger, clock):
    accept(ledger)
    claimed = claim(ledger)
    for _ in range(3):
        clock.advance(20)
        assert ledger.renew(claimed, STEP) == "ok"

    assert ledger.reap().requeued == {}


def test_an_item_that_loses_all_its_workers_fails_as_worker_lost(ledger, clock):
    job_id = accept(ledger)
    for _ in range(2):
        assert claim(ledger) is not None
        reaped = wait_under_passes(ledger, clock, 31)

    assert list(reaped.ended) == [f"{job_id}:0"]
    job = ledger.job(job_id)
    assert job.state is State.FAILED
    assert job.items[0].error.code == "worker_lost"
    assert leftovers(ledger.redis) == {}


@pytest.mark.parametrize("reason", ["drain", "outage"])
def test_an_item_released_for_a_drain_or_an_outage_keeps_its_attempt_and_returns_to_the_head_of_the_queue(
    ledger, reason
):
    first, second = accept(ledger), accept(ledger)
    claimed = claim(ledger)

    assert ledger.release(claimed, reason) == "queued"

    again = claim(ledger, "gpu-1")
    assert (again.job_id, again.attempt, again.fence) == (first, 1, 2)
    assert claim(ledger).job_id == second


def test_an_outage_on_the_last_attempt_fails_no_item(ledger):
    job_id = accept(ledger)
    for _ in range(5):
        assert ledger.release(claim(ledger), "outage", BROKEN) == "queued"
    ledger.release(claim(ledger), "retry", BROKEN)

    assert ledger.release(claim(ledger), "outage", BROKEN) == "queued"

    assert (ledger.job(job_id).items[0].attempt, claim(ledger).fence) == (1, 8)


def test_a_reported_outage_of_the_store_holds_claims_back_until_it_was_probed(ledger):
    assert claim(ledger) is None
    job_id = accept(ledger)
    ledger.workers.report_storage_outage(is_new=True)

    with pytest.raises(StorageOutageReported) as refused:
        claim(ledger)
    assert ledger.job(job_id).items[0].state is State.QUEUED
    ledger.workers.report_storage_outage(is_new=False)

    claimed = ledger.claim_next(["flux2"], slot="gpu-0", boot="b", warm="base", probed_outage=refused.value.outage_id)
    assert claimed.job_id == job_id


def test_a_reported_outage_refuses_no_claim_when_nothing_is_queued(ledger):
    ledger.workers.report_storage_outage(is_new=True)

    assert claim(ledger) is None


def test_a_retry_counts_as_an_attempt_and_the_last_one_stores_its_error(ledger):
    job_id = accept(ledger)
    assert ledger.release(claim(ledger), "retry", BROKEN) == "queued"

    assert ledger.release(claim(ledger), "retry", BROKEN) == "failed"

    assert ledger.job(job_id).items[0].error == BROKEN


def test_an_item_that_needs_time_waits_behind_all_others_and_its_attempts_count(ledger):
    jobs = [accept(ledger) for _ in range(3)]

    assert ledger.release(claim(ledger), "later", BROKEN) == "queued"
    order = [claim(ledger) for _ in jobs]

    assert [taken.job_id for taken in order] == [jobs[1], jobs[2], jobs[0]]
    assert ledger.release(order[2], "later", BROKEN) == "failed"
    assert claim(ledger) is None


def test_canceling_a_queued_job_ends_it_at_once(ledger):
    job_id = accept(ledger, spec(), spec())

    assert ledger.cancel(job_id)

    assert ledger.job(job_id).state is State.CANCELED
    assert claim(ledger) is None
    assert leftovers(ledger.redis) == {}


def test_a_cancel_reaches_the_running_item_at_its_renewal_and_wins_over_its_success(ledger, make_result):
    job_id = accept(ledger, spec(), spec())
    claimed = claim(ledger)

    ledger.cancel(job_id)

    assert states(ledger, job_id) == [State.RUNNING, State.CANCELED]
    assert ledger.job(job_id).cancel_requested
    assert ledger.renew(claimed, STEP) == "cancel"
    assert ledger.commit(claimed, make_result()) == "canceled"
    assert ledger.job(job_id).state is State.CANCELED


def test_a_cancel_also_wins_when_the_worker_dies_or_releases_the_item(ledger, clock):
    died, gave_up = accept(ledger), accept(ledger)
    claim(ledger)
    second = claim(ledger)
    ledger.cancel(died)
    ledger.cancel(gave_up)

    assert ledger.release(second, "retry", BROKEN) == "canceled"
    clock.advance(31)
    ledger.reap()

    assert ledger.job(died).state is State.CANCELED
    assert ledger.job(gave_up).state is State.CANCELED


def test_canceling_a_finished_job_changes_nothing(ledger, make_result):
    accept(ledger)
    claimed = claim(ledger)
    ledger.commit(claimed, make_result())

    assert ledger.cancel(claimed.job_id)

    assert ledger.job(claimed.job_id).state is State.SUCCEEDED


def test_canceling_an_unknown_job_answers_false(ledger):
    assert not ledger.cancel("nobody")


def test_one_failed_item_fails_the_job_but_keeps_the_other_images(ledger, make_result):
    job_id = accept(ledger, spec(), spec())
    ledger.commit(claim(ledger), make_result())
    ledger.commit(claim(ledger), BROKEN)

    job = ledger.job(job_id)
    assert job.state is State.FAILED
    assert job.items[0].result is not None
    assert job.items[1].error == BROKEN


def test_the_same_idempotency_key_gives_the_same_job_and_another_body_is_refused(ledger):
    first = ledger.accept("one", [spec()], record={}, idempotency_key="k", body_hash="h")
    again = ledger.accept("two", [spec()], record={}, idempotency_key="k", body_hash="h")

    assert (first.job_id, first.is_repeat) == ("one", False)
    assert (again.job_id, again.is_repeat) == ("one", True)
    with pytest.raises(IdempotencyKeyReused, match="'k'"):
        ledger.accept("three", [spec()], record={}, idempotency_key="k", body_hash="other")
    assert ledger.accept("four", [spec()], record={}, tenant="b", idempotency_key="k", body_hash="x").job_id == "four"
    assert ledger.queue_length("flux2") == 2


def test_accepting_the_same_job_twice_queues_it_once(ledger):
    for _ in range(2):
        ledger.accept("same", [spec(), spec()], record={})

    assert ledger.queue_length("flux2") == 2


def test_a_job_for_which_the_queue_has_no_room_is_refused_as_a_whole(ledger):
    accept(ledger, *[spec()] * 15)

    with pytest.raises(QueueFull, match="6 items were asked for, 15 items are queued and the cap is 20"):
        accept(ledger, *[spec()] * 6)

    assert ledger.queue_length("flux2") == 15


def submission(job_id: str, *specs: ItemSpec, **options) -> Submission:
    return Submission(job_id, specs or (spec(),), record={"of": job_id}, **options)


def parts(*, key: str = "", prefix: str = "job", items: int = 1) -> list[Submission]:
    """Three jobs of one call; with a key, each has its own."""
    keys_of_parts = [key and f"{key}#{number}" for number in range(3)]
    specs = [spec()] * items
    return [
        submission(f"{prefix}-{number}", *specs, idempotency_key=part, body_hash="h")
        for number, part in enumerate(keys_of_parts)
    ]


def stored_keys(ledger):
    return set(ledger.redis.scan_iter(f"{keys.PREFIX}*"))


def test_jobs_of_one_call_are_stored_together(ledger):
    accepted = ledger.accept_all([*parts(items=2), submission("other", spec(engine="ai-toolkit"))])

    assert [(job.job_id, job.is_repeat, job.record["of"]) for job in accepted] == [
        ("job-0", False, "job-0"),
        ("job-1", False, "job-1"),
        ("job-2", False, "job-2"),
        ("other", False, "other"),
    ]
    assert (ledger.queue_length("flux2"), ledger.queue_length("flux2+ai-toolkit")) == (6, 1)
    assert [job.job_id for job in ledger.jobs(before=None, limit=9).jobs] == ["other", "job-2", "job-1", "job-0"]


def test_no_job_of_a_call_is_stored_when_one_pool_has_no_room_for_all(ledger):
    jobs = [submission("other", spec(engine="ai-toolkit")), *parts(items=7, key="k")]

    with pytest.raises(JobTooLarge, match="21 items were asked for, 0 items are queued and the cap is 20"):
        ledger.accept_all(jobs)  # 3 * 7 items of one pool

    assert stored_keys(ledger) == set()


def test_a_call_that_can_never_fit_is_refused_for_good_even_if_another_pool_is_only_full_now(ledger):
    engines = ("exact", "ai-toolkit", "fast")
    for engine in engines[:2]:
        ledger.accept(f"before {engine}", [spec(engine=engine)] * 20, record={})
    before = stored_keys(ledger)

    with pytest.raises(JobTooLarge, match="21 items were asked for, 0 items are queued"):
        ledger.accept_all(
            [
                submission(engine, *[spec(engine=engine)] * count)
                for engine, count in zip(engines, (1, 1, 21), strict=True)
            ]
        )

    assert stored_keys(ledger) == before


def test_no_job_of_a_call_is_stored_when_one_key_belongs_to_another_body(ledger):
    ledger.accept("before", [spec()], record={}, idempotency_key="k#1", body_hash="another")
    before = stored_keys(ledger)

    with pytest.raises(IdempotencyKeyReused, match="'k#1'"):
        ledger.accept_all(parts(key="k"))

    assert stored_keys(ledger) == before
    assert ledger.queue_length("flux2") == 1


def test_a_call_of_several_jobs_that_is_repeated_with_its_keys_gives_the_same_jobs(ledger):
    ledger.accept_all(parts(key="k"))

    again = ledger.accept_all(parts(key="k", prefix="again"))

    assert [(job.job_id, job.is_repeat, job.record["of"]) for job in again] == [
        (f"job-{number}", True, f"job-{number}") for number in range(3)
    ]
    assert ledger.queue_length("flux2") == 3


def test_a_repeat_needs_no_room_and_stores_what_was_missing(ledger):
    ledger.accept_all(parts(key="k", items=5)[:2])
    accept(ledger, *[spec()] * 5)

    again = ledger.accept_all(parts(key="k", prefix="again", items=5))

    assert [(job.job_id, job.is_repeat) for job in again] == [("job-0", True), ("job-1", True), ("again-2", False)]
    assert ledger.queue_length("flux2") == 20


def test_two_jobs_of_one_call_with_one_key_are_one_job(ledger):
    first, second = (submission(job_id, idempotency_key="k", body_hash="h") for job_id in ("one", "two"))

    accepted = ledger.accept_all([first, second])

    assert [(job.job_id, job.is_repeat) for job in accepted] == [("one", False), ("one", True)]
    assert ledger.queue_length("flux2") == 1
    with pytest.raises(IdempotencyKeyReused, match="'new'"):
        ledger.accept_all([submission(job_id, idempotency_key="new", body_hash=job_id) for job_id in ("three", "four")])
    assert ledger.job("three") is None


def test_a_call_of_several_jobs_that_is_sent_twice_is_no_repeat(ledger, monkeypatch):
    run = ledger._session.run

    def sent_twice(script, **arguments):
        run(script, **arguments)
        return run(script, **arguments)

    monkeypatch.setattr(ledger._session, "run", sent_twice)
    accepted = ledger.accept_all(parts(key="k"))

    assert [job.is_repeat for job in accepted] == [False] * 3
    assert ledger.queue_length("flux2") == 3


def test_a_key_whose_job_an_earlier_version_forgot_stands_for_a_new_one(ledger):
    ledger.accept_all(parts(key="k"))
    ledger.cancel("job-1")
    ledger.redis.delete(keys.job("job-1"), keys.item("job-1:0"))

    again = ledger.accept_all(parts(key="k", prefix="again"))

    assert [(job.job_id, job.is_repeat) for job in again] == [("job-0", True), ("again-1", False), ("job-2", True)]


def test_priority_goes_before_age(ledger):
    accept(ledger, priority=5)
    urgent = accept(ledger, priority=0)

    assert claim(ledger).job_id == urgent


def test_an_item_that_waited_past_the_bound_goes_before_priority(redis_client, clock):
    ledger = Ledger(redis_client, QueueSettings(wait_bound_s=60), clock_ms=clock)
    old = accept(ledger, priority=9)
    clock.advance(61)
    accept(ledger, priority=0)

    assert claim(ledger).job_id == old


def test_tenants_take_turns_however_much_one_of_them_queued(ledger, clock, make_result):
    big = accept(ledger, *[spec()] * 4, tenant="big")
    small = accept(ledger, *[spec("bb")] * 2, tenant="small")

    order = []
    for _ in range(6):
        claimed = claim(ledger, warm=spec().adapter_key)
        order.append(claimed.job_id)
        clock.advance(1)
        ledger.commit(claimed, make_result())

    assert order == [big, small, big, small, big, big]


def test_the_tenant_with_fewest_running_items_is_served(ledger):
    big = accept(ledger, *[spec()] * 4, tenant="big")
    claim(ledger, "gpu-0")
    claim(ledger, "gpu-1")
    small = accept(ledger, *[spec("bb")] * 2, tenant="small")

    # running: big 2; so small, small, and then both have two and big waited longer unserved.
    assert [claim(ledger, f"gpu-{n}").job_id for n in (2, 3)] == [small, small]
    assert claim(ledger, "gpu-4").job_id == big


def test_tenants_that_were_served_before_the_wait_bound_are_forgotten(redis_client, clock):
    ledger = Ledger(redis_client, QueueSettings(wait_bound_s=60, cap=100), clock_ms=clock)
    served = f"{keys.PREFIX}served:flux2"
    for number in range(30):
        accept(ledger, tenant=f"once-{number}")
        ledger.commit(claim(ledger), None)
    assert redis_client.hlen(served) == 30

    # Each claim looks at 4 of 31, at most one of which was served since: after 10 none of the 30 is left.
    clock.advance(61)
    for _ in range(10):
        accept(ledger, tenant="again")
        ledger.commit(claim(ledger), None)

    assert redis_client.hkeys(served) == ["again"]


def test_a_slot_claims_items_of_its_warm_adapter_before_older_ones(ledger):
    accept(ledger, spec("aa"))
    warm = accept(ledger, spec("bb"))

    assert claim(ledger, warm=spec("bb").adapter_key).job_id == warm


def test_an_adapter_at_another_multiplier_is_not_warm(ledger):
    first = accept(ledger, spec("aa", multiplier=1.0))
    accept(ledger, spec("bb", multiplier=0.5))

    assert claim(ledger, warm=spec("bb", multiplier=1.0).adapter_key).job_id == first


def test_a_slot_leaves_an_adapter_that_another_slot_has_warm_to_that_slot(ledger):
    report = {"warm": spec("aa").adapter_key}
    ledger.workers.beat("gpu-1", report)
    elsewhere = accept(ledger, spec("aa"))
    free = accept(ledger, spec("bb"))

    assert claim(ledger, "gpu-0").job_id == free
    assert claim(ledger, "gpu-0").job_id == elsewhere


def test_the_warm_adapter_of_a_dead_slot_is_free_for_others(ledger, clock):
    ledger.workers.beat("gpu-1", {"warm": spec("aa").adapter_key})
    clock.advance(16)
    oldest = accept(ledger, spec("aa"))
    accept(ledger, spec("bb"))

    assert claim(ledger, "gpu-0").job_id == oldest


def test_a_slot_claims_only_items_of_engines_that_it_offers(ledger):
    toolkit = accept(ledger, spec(engine="ai-toolkit"))
    exact = accept(ledger, spec())

    assert claim(ledger).job_id == exact
    assert claim(ledger) is None
    assert claim(ledger, pools=("flux2", "flux2+ai-toolkit")).job_id == toolkit


def test_a_slot_of_two_engines_claims_the_oldest_item(ledger):
    jobs = [accept(ledger, spec(engine=engine)) for engine in ("exact", "ai-toolkit", "exact")]

    assert [claim(ledger, pools=("flux2", "flux2+ai-toolkit")).job_id for _ in jobs] == jobs


def test_a_slot_of_two_engines_claims_by_priority_after_items_that_waited_past_the_bound(ledger, clock):
    both = ("flux2", "flux2+ai-toolkit")
    late = accept(ledger, spec(engine="ai-toolkit"), priority=9)
    clock.advance(3599)
    usual, urgent = accept(ledger, spec()), accept(ledger, spec(engine="ai-toolkit"), priority=1)

    assert claim(ledger, pools=both).job_id == urgent
    clock.advance(2)  # `late` has waited past the bound of an hour

    assert [claim(ledger, pools=both).job_id for _ in range(2)] == [late, usual]


def test_an_expired_item_returns_to_the_queue_of_its_engine(ledger, clock):
    accept(ledger, spec(engine="ai-toolkit"))
    claim(ledger, pools=("flux2+ai-toolkit",))
    clock.advance(31)

    assert ledger.reap().requeued == {"flux2+ai-toolkit": 1}
    assert (ledger.queue_length("flux2"), ledger.queue_length("flux2+ai-toolkit")) == (0, 1)


def test_a_canceled_job_leaves_the_queue_of_its_engine(ledger):
    job_id = accept(ledger, spec(engine="ai-toolkit"))

    ledger.cancel(job_id)

    assert ledger.queue_length("flux2+ai-toolkit") == 0
    assert leftovers(ledger.redis) == {}


def test_each_model_has_its_own_queue(ledger):
    accept(ledger, spec(model="other"))

    assert claim(ledger) is None
    assert ledger.claim_next(["other"], slot="s", boot="b", warm="base") is not None


def test_a_restarted_slot_reclaims_the_items_of_its_earlier_process_without_waiting(ledger):
    mine, other = accept(ledger), accept(ledger)
    claim(ledger, "gpu-0", boot="old")
    claim(ledger, "gpu-1", boot="old")

    assert ledger.reclaim(slot="gpu-0", boot="new") == 1

    assert states(ledger, mine) == [State.QUEUED]
    assert states(ledger, other) == [State.RUNNING]
    assert ledger.reclaim(slot="gpu-0", boot="new") == 0


def test_a_redis_restart_grants_every_lease_one_full_term(ledger, clock):
    accept(ledger)
    claim(ledger)
    ledger.reap()
    ledger.redis.set(f"{keys.PREFIX}run_id", "another-run")
    clock.advance(31)

    graced = ledger.reap()
    assert graced.grace
    assert graced.requeued == {}

    assert wait_under_passes(ledger, clock, 31).requeued == {"flux2": 1}


def test_the_queue_position_counts_the_items_ahead(ledger):
    accept(ledger, spec(), spec())
    second = accept(ledger)

    assert ledger.job(second).queue_position == 2
    claim(ledger)
    assert ledger.job(second).queue_position == 1


def test_an_item_that_ends_before_it_began_because_the_clock_was_set_has_no_pace(ledger, clock, make_result):
    accept(ledger)
    claimed = claim(ledger)
    clock.advance(-3600)

    ledger.commit(claimed, make_result())

    assert ledger.redis.get(keys.pace("flux2")) is None


def test_the_eta_comes_from_the_pace_of_finished_items(ledger, clock, make_result):
    job_id = accept(ledger, spec(), spec(), spec())
    assert ledger.job(job_id).eta_s is None
    first = claim(ledger)
    clock.advance(10)
    ledger.commit(first, make_result())

    # Two items left at 10 s each, one slot.
    assert ledger.job(job_id).eta_s == 20.0


def test_commits_smooth_what_images_of_a_size_took(ledger, clock, make_result):
    result = make_result().model_copy(update={"timings": {"denoise": 1.0, "encode_image": 0.2, "upload": 0.3}})
    rows = []
    for took_s in (10, 20, 200):
        accept(ledger)
        claimed = claim(ledger)
        clock.advance(took_s)
        ledger.commit(claimed, result)
        rows.append(ledger.redis.hget(keys.times("flux2"), "exact|fp32|16r0"))

    # 16 tokens and those of the text, 528 * (1 + 528 / 44,000), in each step.
    step_ns = round(1e9 / spec().num_inference_steps / (528 * 1.012))
    # The rest of 10 s is 8.5 s, and that of 20 s 18.5 s: half of the 10 s more counts. The third counts as thrice the
    # mean of 13.5 s: a third of the 27 s more counts, and a third of the way from 5 s to 27 s for the deviation.
    assert rows == [
        f"1 {step_ns} 0 8500000 0 500000 0",
        f"2 {step_ns} 0 13500000 5000000 500000 0",
        f"3 {step_ns} 0 22500000 12333333 500000 0",
    ]


def test_the_listing_is_newest_first_in_pages_and_filters(ledger):
    ids = [accept(ledger) for _ in range(5)]
    ledger.cancel(ids[1])

    first = ledger.jobs(before=None, limit=2)
    second = ledger.jobs(before=first.next_before, limit=2)
    last = ledger.jobs(before=second.next_before, limit=2)

    assert [[job.job_id for job in page.jobs] for page in (first, second, last)] == [
        [ids[4], ids[3]],
        [ids[2], ids[1]],
        [ids[0]],
    ]
    assert last.next_before is None
    assert [job.job_id for job in ledger.jobs(before=None, limit=9, state="canceled").jobs] == [ids[1]]
    assert ledger.jobs(before=None, limit=9, model="nothing").jobs == ()


def test_the_surplus_is_the_number_of_wake_ups_beyond_the_queued_items(ledger):
    accept(ledger, spec(), spec(), spec())
    ledger.redis.lpush(keys.wake_list("flux2"), "message")
    assert ledger.wakeups.surplus("flux2") == -2

    ledger.redis.lpush(keys.wake_list("flux2"), *["message"] * 5)

    assert ledger.wakeups.surplus("flux2") == 3


def test_surplus_wake_ups_are_dropped_down_to_the_number_kept_and_within_the_limit(ledger):
    accept(ledger, spec(), spec(), spec())
    ledger.redis.lpush(keys.wake_list("flux2"), *map(str, range(20)))

    # 20 messages, 3 queued items, 10 to keep: 7 may go.
    assert ledger.wakeups.drop_surplus("flux2", keep=10, limit=4) == 4
    assert ledger.wakeups.drop_surplus("flux2", keep=10, limit=4) == 3
    assert ledger.wakeups.drop_surplus("flux2", keep=10, limit=4) == 0

    # What was sent first is left; Celery takes it from the tail.
    assert ledger.redis.lrange(keys.wake_list("flux2"), 0, -1) == [str(n) for n in reversed(range(13))]


def test_no_wake_up_is_dropped_while_there_are_fewer_than_queued_items(ledger):
    accept(ledger, spec(), spec(), spec())
    ledger.redis.lpush(keys.wake_list("flux2"), "message", "message")

    assert ledger.wakeups.drop_surplus("flux2", keep=0, limit=100) == 0
    assert ledger.wakeups.count("flux2") == 2


def test_the_audit_has_one_leader_at_a_time(ledger):
    assert ledger.wakeups.try_lead_audit("a")
    assert not ledger.wakeups.try_lead_audit("b")
    assert ledger.wakeups.try_lead_audit("a")


def test_finished_jobs_are_forgotten_after_the_retention_and_no_sooner(redis_client, clock):
    ledger = Ledger(redis_client, QueueSettings(retention_s=100, idempotency_ttl_s=100), clock_ms=clock)
    old = accept(ledger)
    ledger.cancel(old)
    waiting = accept(ledger)

    clock.advance(99)
    assert ledger.forget_ended() == 0
    clock.advance(2)
    assert ledger.forget_ended() == 1

    assert ledger.job(old) is None
    assert ledger.job(waiting) is not None
    assert [job.job_id for job in ledger.jobs(before=None, limit=9).jobs] == [waiting]


def ended_with_a_webhook(ledger, **options):
    job_id = accept(ledger, webhook_url="https://example.com", **options)
    ledger.cancel(job_id)
    return job_id


def test_a_job_whose_webhook_is_still_being_sent_outlives_its_retention(redis_client, clock):
    ledger = Ledger(redis_client, QueueSettings(retention_s=100, idempotency_ttl_s=100), clock_ms=clock)
    delivered, failed = ended_with_a_webhook(ledger), ended_with_a_webhook(ledger)
    messages = {message.job_id: message for message in ledger.outbox.reserve_due(reserve_s=10, limit=9)}
    for message in messages.values():
        ledger.outbox.postpone(message, wait_s=1800, error="answered 500")

    clock.advance(1799)
    assert ledger.forget_ended() == 0
    assert ledger.outbox.count_undelivered() == 2
    assert {ledger.job(job_id).webhook.state for job_id in (delivered, failed)} == {"waiting"}

    clock.advance(2)
    messages = {message.job_id: message for message in ledger.outbox.reserve_due(reserve_s=10, limit=9)}
    assert set(messages) == {delivered, failed}
    assert ledger.forget_ended() == 0
    ledger.outbox.mark_delivered(messages[delivered])
    ledger.outbox.mark_failed(messages[failed], error="answered 500")
    clock.advance(60)
    assert ledger.forget_ended() == 2


def test_jobs_that_must_stay_do_not_keep_the_sweep_from_later_ones(redis_client, clock):
    ledger = Ledger(redis_client, QueueSettings(retention_s=100, idempotency_ttl_s=100), clock_ms=clock)
    for _ in range(100):
        ended_with_a_webhook(ledger)
    clock.advance(1)
    ledger.cancel(accept(ledger))
    clock.advance(101)

    assert [ledger.forget_ended(), ledger.forget_ended()] == [0, 1]
    assert ledger.outbox.count_undelivered() == 100


def test_a_sweep_ends_after_some_thousands_of_items(redis_client, clock):
    ledger = Ledger(redis_client, QueueSettings(retention_s=100, idempotency_ttl_s=100), clock_ms=clock)
    for _ in range(3):
        ledger.cancel(accept(ledger, *[spec()] * 2500))
    clock.advance(101)

    assert [ledger.forget_ended(), ledger.forget_ended()] == [2, 1]
    assert not list(redis_client.scan_iter(f"{keys.PREFIX}item:*"))


def test_a_job_outlives_a_shorter_retention_while_its_idempotency_key_is_remembered(redis_client, clock):
    ledger = Ledger(redis_client, QueueSettings(retention_s=500, idempotency_ttl_s=500), clock_ms=clock)
    hasty = Ledger(redis_client, QueueSettings(retention_s=100, idempotency_ttl_s=100), clock_ms=clock)
    options = {"record": {}, "idempotency_key": "k", "body_hash": "h"}
    ledger.accept("first", [spec()], **options)
    ledger.cancel("first")

    clock.advance(499)
    assert hasty.forget_ended() == 0
    again = ledger.accept("second", [spec()], **options)
    assert (again.job_id, again.is_repeat) == ("first", True)

    clock.advance(1)
    assert hasty.forget_ended() == 1


def test_the_registry_returns_the_base_model_that_all_live_slots_have_loaded(ledger, slot_report):
    def base():
        return ledger.workers.base_model("flux2", ledger.workers.live_slots())

    assert base() is None

    ledger.workers.publish_base_model("flux2", revision="abc", layers={"img_in": (64, 128)})
    assert base() is None  # of a worker that has ended since

    ledger.workers.beat("gpu-0", slot_report(revision="abc"))
    assert (base().revision, dict(base().layers)) == ("abc", {"img_in": (64, 128)})

    ledger.workers.beat("gpu-1", slot_report(revision="def"))
    assert base() is None  # which of the two will render is not known


def test_a_slot_is_listed_from_its_heartbeat_until_it_is_removed(ledger, slot_report):
    ledger.workers.beat("gpu-0", slot_report())
    assert [(slot.name, slot.state) for slot in ledger.workers.live_slots()] == [("gpu-0", "ready")]

    ledger.workers.beat("gpu-0", slot_report(engines="turbo,fast,exact"))
    assert [slot.engines for slot in ledger.workers.live_slots()] == [("exact", "fast")]

    ledger.workers.remove("gpu-0")

    assert ledger.workers.live_slots() == []


def test_every_call_without_a_redis_raises_the_same_error():
    ledger = Ledger.connect("redis://127.0.0.1:1/0", QueueSettings(), timeout_s=0.5)

    for ask in (ledger.ping, ledger.reap, lambda: ledger.job("x"), lambda: accept(ledger), lambda: claim(ledger)):
        with pytest.raises(LedgerUnavailable, match="did not answer"):
            ask()


def test_a_redis_without_room_refuses_a_job_and_keeps_none_of_it(ledger):
    ledger.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(LedgerUnavailable, match="cannot take writes"):
            accept(ledger)
    finally:
        ledger.redis.config_set("maxmemory", "0")

    assert list(ledger.redis.scan_iter(f"{keys.PREFIX}*")) == []


def test_a_redis_without_room_is_unavailable_for_plain_commands_too(ledger):
    ledger.redis.config_set("maxmemory", "1")
    try:
        for ask in (
            lambda: ledger.wakeups.try_lead_audit("a"),
            lambda: ledger.workers.beat("gpu-0", {"warm": "base"}),
        ):
            with pytest.raises(LedgerUnavailable, match="cannot take writes"):
                ask()
    finally:
        ledger.redis.config_set("maxmemory", "0")


def test_a_replica_is_unavailable_for_writes(ledger):
    ledger.redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(LedgerUnavailable, match="cannot take writes"):
            accept(ledger)
    finally:
        ledger.redis.replicaof("NO", "ONE")


def test_a_claim_that_is_sent_twice_gives_one_item(ledger, monkeypatch):
    accept(ledger, spec(), spec())
    run = ledger._session.run

    def sent_twice(script, **arguments):
        run(script, **arguments)
        return run(script, **arguments)

    monkeypatch.setattr(ledger._session, "run", sent_twice)
    claimed = claim(ledger)

    assert (claimed.index, claimed.fence) == (0, 1)
    assert ledger.queue_length("flux2") == 1


def test_a_claim_and_its_repeat_state_the_size_of_the_fleet(ledger, slot_report, monkeypatch):
    for name in ("gpu-0", "gpu-1", "gpu-2"):
        ledger.workers.beat(name, slot_report())
    accept(ledger, spec(), spec())
    assert claim(ledger).slots == 3

    run = ledger._session.run
    monkeypatch.setattr(
        ledger._session, "run", lambda *script, **arguments: [run(*script, **arguments) for _ in "ab"][1]
    )

    assert claim(ledger).slots == 3


def test_an_accept_that_is_sent_twice_is_no_repeat(ledger, monkeypatch):
    run = ledger._session.run

    def sent_twice(script, **arguments):
        run(script, **arguments)
        return run(script, **arguments)

    monkeypatch.setattr(ledger._session, "run", sent_twice)
    accepted = ledger.accept("job", [spec()], record={}, idempotency_key="k", body_hash="h")

    assert not accepted.is_repeat
    assert ledger.queue_length("flux2") == 1


def test_a_spec_of_another_version_fails_with_the_reason_and_the_next_item_is_claimed(ledger):
    unreadable, fine = accept(ledger), accept(ledger)
    ledger.redis.hset(keys.item(f"{unreadable}:0"), "spec", '{"model": "flux2", "future": 1}')

    assert ledger.peek_next(["flux2"], slot="s", warm="base") is None
    assert ledger.claim_next(["flux2"], slot="s", boot="b", warm="base").job_id == fine

    assert ledger.redis.hget(keys.job(unreadable), "state") == "failed"
    assert "future" in ledger.redis.hget(keys.item(f"{unreadable}:0"), "error")


def test_the_known_parts_of_another_versions_spec_can_be_read(ledger):
    job_id = accept(ledger, spec(), spec(), spec())
    stored = json.loads(spec().model_dump_json())
    ledger.redis.hset(keys.item(f"{job_id}:0"), "spec", json.dumps({**stored, "engine": "turbo", "future": 1}))
    ledger.redis.hset(keys.item(f"{job_id}:1"), "spec", json.dumps({**stored, "seed": "a word"}))

    seen = [item.spec for item in ledger.job(job_id).items]

    assert [view and (view.prompt, view.seed) for view in seen] == [("a cat", 42), None, ("a cat", 42)]


def test_a_job_that_is_forgotten_while_it_is_read_does_not_exist(ledger):
    job_id = accept(ledger, spec(), spec())
    ledger.redis.delete(keys.item(f"{job_id}:1"))

    assert ledger.job(job_id) is None


def test_the_wait_bound_counts_from_the_accept_and_not_from_the_last_requeue(redis_client, clock):
    ledger = Ledger(redis_client, QueueSettings(wait_bound_s=60, lease_ttl_s=30), clock_ms=clock)
    old = accept(ledger, priority=9)
    claim(ledger)
    clock.advance(61)
    ledger.reap()
    accept(ledger, priority=0)

    assert claim(ledger).job_id == old


def test_the_choice_costs_the_same_with_thousands_of_adapters_queued(ledger):
    wide = Ledger(ledger.redis, QueueSettings(cap=10_000))
    many = [spec(f"{n:04}") for n in range(3000)]
    wide.accept("many", many, record={})

    ledger.redis.config_resetstat()
    assert claim(wide, warm=spec("2999").adapter_key).index == 2999
    calls = ledger.redis.info("commandstats")

    # Commands inside the script are counted, some 60, and those that load it; with a look at each lane there would be
    # thousands.
    assert sum(command["calls"] for command in calls.values()) < 100


def test_redis_holds_the_whole_spec_of_an_item(ledger):
    job_id = accept(ledger)

    [stored] = ledger.redis.lrange(keys.specs(job_id), 0, -1)

    parameters, inputs = map(json.loads, stored.splitlines())
    assert ItemSpec.model_validate(parameters | inputs) == spec()
