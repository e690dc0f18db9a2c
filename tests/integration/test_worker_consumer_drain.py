"""After SIGTERM an item that is not done in time is handed over, and the process always ends."""

import threading
from types import SimpleNamespace

import pytest

from shared.job import State
from shared.ledger import Ledger
from shared.settings import QueueSettings
from worker.consumer.drain import Drain
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.slot import Slot
from worker.consumer.worker_state import WorkerState


@pytest.fixture
def draining(redis_client, item):
    """A worker; `claim` gives it an item of a new job, and `ended` is set when its process would have ended."""
    ledger = Ledger(redis_client, QueueSettings())
    slot = Slot(name="test", model="flux2", device="cpu", revision="r", precision="fp32", engines=("exact",))
    state = WorkerState()
    ended, statuses = threading.Event(), []

    def exit_process(status):
        statuses.append(status)
        ended.set()

    def claim(job="job"):
        ledger.accept(job, [item()], record={})
        return ledger.claim_next(["flux2"], slot="test", boot="b", warm="base")

    def requeue(claim):
        ledger.release(claim, "drain")

    worker = SimpleNamespace(
        slot=slot,
        state=state,
        heartbeat=Heartbeat(ledger, slot, state, SimpleNamespace(warm_key="base")),
        ledger=ledger,
        requeue=requeue,
        exit_process=exit_process,
        settings=SimpleNamespace(worker=SimpleNamespace(drain_s=0.05)),
    )
    drain = Drain(worker, close_s=0.3)
    drain.start()
    yield SimpleNamespace(drain=drain, state=state, ledger=ledger, claim=claim, ended=ended, statuses=statuses)
    drain.stop()


def test_an_item_that_is_not_done_in_time_is_handed_over_without_costing_an_attempt(draining):
    draining.state.add_claim(draining.claim())

    draining.drain.begin()

    assert draining.state.is_draining
    assert draining.ended.wait(5)
    [item] = draining.ledger.job("job").items
    assert (item.state, item.attempt) == (State.QUEUED, 0)
    assert draining.statuses == [0]


def test_an_item_that_is_still_being_stored_is_handed_over_as_well(draining):
    draining.state.add_claim(draining.claim())
    draining.state.add_claim(draining.claim("other"))

    draining.drain.begin()

    assert draining.ended.wait(5)
    items = [draining.ledger.job(job).items[0] for job in ("job", "other")]
    assert [(item.state, item.attempt) for item in items] == [(State.QUEUED, 0), (State.QUEUED, 0)]


def test_a_process_that_does_not_close_by_itself_is_ended(draining):
    draining.drain.begin()

    assert draining.ended.wait(5)
    assert draining.statuses == [0]


def test_an_item_that_was_claimed_after_the_signal_is_handed_over_too(draining):
    draining.drain.begin()
    draining.state.add_claim(draining.claim())

    assert draining.ended.wait(5)
    assert draining.ledger.job("job").items[0].state is State.QUEUED


def test_the_process_ends_even_if_redis_does_not_answer(draining, monkeypatch):
    draining.state.add_claim(draining.claim())
    monkeypatch.setattr(
        draining.ledger.redis,
        "connection_pool",
        Ledger.connect("redis://127.0.0.1:1/0", QueueSettings(), timeout_s=1).redis.connection_pool,
    )

    draining.drain.begin()

    assert draining.ended.wait(5)
