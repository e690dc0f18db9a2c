"""SIGTERM's thread: an item that is not done in time is handed over, and the process always ends."""

import threading
from types import SimpleNamespace

import pytest

from shared.job import State
from shared.ledger import Ledger
from shared.settings import QueueSettings
from worker.consumer import drain as module
from worker.consumer.drain import drain
from worker.consumer.heartbeat import Slot


@pytest.fixture
def draining(redis_client, monkeypatch, item):
    """A worker; `claim` gives it an item of a new job, and `ended` is set when its process would have ended."""
    monkeypatch.setattr(module, "_CLOSE_S", 0.3)
    ledger = Ledger(redis_client, QueueSettings())
    slot = Slot(ledger, name="test", model="flux2", device="cpu", revision="r", precision="fp32", engines=["exact"])
    ended, statuses = threading.Event(), []

    def end(status):
        statuses.append(status)
        ended.set()

    def claim(job="job"):
        ledger.accept(job, [item()], record={})
        return ledger.claim_next(["flux2"], slot="test", boot="b", warm="base")

    def hand_over(claim):
        ledger.release(claim, "drain")

    worker = SimpleNamespace(
        slot=slot,
        ledger=ledger,
        hand_over=hand_over,
        end=end,
        settings=SimpleNamespace(worker=SimpleNamespace(drain_s=0.05)),
    )
    return SimpleNamespace(worker=worker, slot=slot, ledger=ledger, claim=claim, ended=ended, statuses=statuses)


def test_an_item_that_is_not_done_in_time_is_handed_over_without_costing_an_attempt(draining):
    draining.slot.claims.append(draining.claim())

    drain(draining.worker)

    assert draining.slot.draining.is_set()
    assert draining.ended.wait(5)
    [item] = draining.ledger.job("job").items
    assert (item.state, item.attempt) == (State.QUEUED, 0)
    assert draining.statuses == [0]


def test_an_item_that_is_still_stored_is_handed_over_as_well(draining):
    draining.slot.claims.extend([draining.claim(), draining.claim("other")])

    drain(draining.worker)

    assert draining.ended.wait(5)
    items = [draining.ledger.job(job).items[0] for job in ("job", "other")]
    assert [(item.state, item.attempt) for item in items] == [(State.QUEUED, 0), (State.QUEUED, 0)]


def test_a_process_that_does_not_close_by_itself_is_ended(draining):
    drain(draining.worker)

    assert draining.ended.wait(5)
    assert draining.statuses == [0]


def test_an_item_that_was_claimed_at_the_last_moment_is_handed_over_too(draining):
    drain(draining.worker)
    draining.slot.claims.append(draining.claim())

    assert draining.ended.wait(5)
    assert draining.ledger.job("job").items[0].state is State.QUEUED


def test_the_process_ends_although_redis_is_away(draining, monkeypatch):
    draining.slot.claims.append(draining.claim())
    monkeypatch.setattr(
        draining.ledger.redis,
        "connection_pool",
        Ledger.connect("redis://127.0.0.1:1/0", QueueSettings(), timeout_s=1).redis.connection_pool,
    )

    drain(draining.worker)

    assert draining.ended.wait(5)
