"""The lease decides when to wait, when to stop and when the process must end; Redis' answers are scripted."""

import threading
import time
from types import SimpleNamespace

import pytest

from shared.errors import ItemCanceled, LeaseLost, LedgerUnavailable
from shared.job import Progress
from worker.consumer.lease import Lease

STEP = Progress(stage="denoise", step=1, steps=2)
CLAIM = SimpleNamespace(item_id="job:0", fence=1, spec=SimpleNamespace(num_inference_steps=2), slots=8)


class ScriptedLedger:
    """A ledger that gives the next answer to each renewal, and repeats the last one."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.renewals = 0

    def renew(self, claim, progress, *, gpu_s):
        self.renewals += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "away":
            raise LedgerUnavailable("Redis did not answer")
        return answer


@pytest.fixture
def lease(settings):
    def make(
        ledger,
        *,
        ttl_s=0.3,
        renew_s=0.02,
        stall_s=60.0,
        budget_s=0.0,
        s3_timeout_s=0.001,
        on_stall=None,
        claim=CLAIM,
        after_renewal=lambda: None,
    ):
        made = settings(
            queue={"lease_ttl_s": ttl_s, "renew_s": renew_s},
            worker={"stall_s": stall_s},
            storage={"retry_budget_s": budget_s},
            s3={"timeout_s": s3_timeout_s},
        )
        on_stall = on_stall or (lambda progress: None)
        return Lease(ledger, claim, made, on_stall=on_stall, after_renewal=after_renewal)

    return make


def wait_until_overdue(wait_until, held):
    wait_until(held._overdue, what="the end of the lease by the local clock")


def test_work_waits_while_redis_is_away_and_then_continues(lease, wait_until):
    ledger = ScriptedLedger("away")
    went_on = threading.Event()

    with lease(ledger) as held:
        wait_until_overdue(wait_until, held)
        work = threading.Thread(target=lambda: (held.report(STEP), went_on.set()))
        work.start()
        assert not went_on.wait(0.1)

        ledger.answers = ["ok"]
        assert went_on.wait(5)
        work.join()


def test_work_that_waited_stops_when_another_worker_owns_the_item(lease, wait_until):
    ledger = ScriptedLedger("away")

    with lease(ledger) as held:
        wait_until_overdue(wait_until, held)
        ledger.answers = ["lost"]
        with pytest.raises(LeaseLost):
            held.report(STEP)


@pytest.mark.parametrize(("slots", "is_sent"), [(8, True), (250, True), (1000, False)])
def test_progress_is_sent_twice_in_a_second_and_less_often_in_a_large_fleet(lease, slots, is_sent):
    claim = SimpleNamespace(**{**vars(CLAIM), "slots": slots})
    held = lease(ScriptedLedger("ok"), ttl_s=15, renew_s=3, claim=claim)
    # Of 1,000 slots each sends progress every two seconds.
    held._renewed_at = time.monotonic() - 1

    held.report(STEP)

    assert held._wake.is_set() == is_sent


@pytest.mark.parametrize("end", ["lost", "cancel"])
def test_previews_are_sent_at_the_start_and_after_each_renewal_until_the_item_ends(end, lease, wait_until):
    ledger, renewals = ScriptedLedger("ok", "away", "ok", end), []

    with lease(ledger, ttl_s=60, after_renewal=lambda: renewals.append(ledger.renewals)) as held:
        wait_until(lambda: held._lost or held._canceled, what="the end of the item")

    # 0 at the start; the second renewal got no answer.
    assert renewals == [0, 1, 3]


def test_a_cancel_arrives_with_a_renewal(lease, wait_until):
    with lease(ScriptedLedger("ok", "cancel")) as held:

        def canceled():
            try:
                held.check()
            except ItemCanceled:
                return True
            return False

        wait_until(canceled, what="the cancel")


def test_a_stalled_item_is_reported_once_and_no_longer_renewed(lease, wait_until):
    ledger, stalls = ScriptedLedger("ok"), []

    with lease(ledger, ttl_s=5, stall_s=0.2, on_stall=stalls.append) as held, held.expect_progress():
        held.report(STEP)
        wait_until(lambda: stalls, what="the stall")
        renewals = ledger.renewals
        held._thread.join(5)

    assert stalls == [STEP]
    assert ledger.renewals == renewals


def test_a_hung_kernel_is_noticed_even_after_the_lease_was_lost(lease, wait_until):
    stalls = []

    with lease(ScriptedLedger("lost"), ttl_s=5, stall_s=0.2, on_stall=stalls.append) as held, held.expect_progress():
        wait_until(lambda: stalls, what="the stall")


@pytest.mark.parametrize("wait", [{"budget_s": 60}, {"s3_timeout_s": 15}])
def test_an_upload_counts_as_stalled_only_after_its_retry_budget_and_its_last_request(lease, wait_until, wait):
    ledger, stalls = ScriptedLedger("ok"), []

    with lease(ledger, ttl_s=5, stall_s=0.1, **wait, on_stall=stalls.append) as held, held.expect_progress():
        held.report(Progress(stage="upload", step=2, steps=2))
        wait_until(lambda: ledger.renewals > 15, what="more renewals than a stall takes")

    assert stalls == []


def test_a_download_from_a_silent_host_is_no_stall_but_the_kernel_after_it_may_be(lease, wait_until):
    ledger, stalls = ScriptedLedger("ok"), []

    with lease(ledger, ttl_s=5, stall_s=0.1, on_stall=stalls.append) as held, held.expect_progress():
        held.report(Progress(stage="fetch", step=0, steps=2))
        wait_until(lambda: ledger.renewals > 15, what="more renewals than a stall takes")
        assert stalls == []
        held.report(Progress(stage="adapter", step=0, steps=2))
        wait_until(lambda: stalls, what="the stall")


def test_an_upload_that_hangs_for_longer_is_a_stall(lease, wait_until):
    stalls, upload = [], Progress(stage="upload", step=2, steps=2)

    with lease(ScriptedLedger("ok"), ttl_s=5, stall_s=0.1, on_stall=stalls.append) as held, held.expect_progress():
        held.report(upload)
        wait_until(lambda: stalls, what="the stall")

    assert stalls == [upload]


def test_waiting_for_redis_is_no_stall(lease, wait_until):
    ledger, stalls = ScriptedLedger("away"), []

    with lease(ledger, ttl_s=0.1, stall_s=0.25, on_stall=stalls.append) as held, held.expect_progress():
        held.report(STEP)
        wait_until_overdue(wait_until, held)
        work = threading.Thread(target=held.check)
        work.start()
        seen = ledger.renewals
        wait_until(lambda: ledger.renewals > seen + 25, what="half a second of waiting")
        ledger.answers = ["ok"]
        work.join(5)
        assert not work.is_alive()

    assert stalls == []


def test_a_commit_may_take_as_long_as_redis_needs(lease, wait_until):
    ledger, stalls = ScriptedLedger("ok"), []

    with lease(ledger, ttl_s=5, stall_s=0.1, on_stall=stalls.append) as held:
        with held.expect_progress():
            held.report(STEP)
        wait_until(lambda: ledger.renewals > 15, what="more renewals than a stall takes")

    assert stalls == []


def test_a_renewal_without_an_answer_is_repeated_after_a_third_of_the_period_and_after_a_second_at_most(
    lease, monkeypatch, wait_until
):
    for renew_s, repeat_s in ((0.3, 0.1), (9.0, 1.0)):
        pauses = []
        held = lease(ScriptedLedger("ok", "away", "away", "ok"), ttl_s=3.5 * renew_s, renew_s=renew_s)
        monkeypatch.setattr(held, "_sleep", pauses.append)

        with held:
            wait_until(lambda pauses=pauses: len(pauses) >= 5, what="five pauses")

        assert pauses[:5] == pytest.approx([renew_s, renew_s, repeat_s, repeat_s, renew_s])
