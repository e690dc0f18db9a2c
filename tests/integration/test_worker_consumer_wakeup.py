"""A claim whose reply is lost: the worker still gets the item, and no attempt is spent."""

import threading
import time
from types import SimpleNamespace

import pytest

from chaos.stub import StubRenderer
from chaos.tcp import Wire
from shared.job import State
from shared.ledger import Ledger, keys
from shared.settings import QueueSettings
from worker.consumer import wakeup
from worker.consumer.wakeup import run_next

TIMEOUT_S = 0.1


@pytest.fixture
def wire(redis_server):
    with Wire(redis_server.port) as wire:
        yield wire


@pytest.fixture
def worker(wire, redis_client, redis_url, settings, tmp_path, monkeypatch, make_worker):
    """A worker that reaches Redis over a wire, and waits briefly for each reply."""
    monkeypatch.setattr(wakeup, "_REPEAT_S", 0.02)
    made = settings(
        redis={"url": redis_url},
        storage={"backend": "directory", "directory": tmp_path / "objects"},
        queue={"lease_ttl_s": 30, "max_attempts": 3},
    )
    ledger = Ledger.connect(f"redis://127.0.0.1:{wire.port}/0", made.queue, timeout_s=TIMEOUT_S)
    return make_worker(made, ledger, StubRenderer(0.0))


@pytest.fixture
def direct(redis_client):
    """The same ledger without the wire."""
    return Ledger(redis_client, QueueSettings(lease_ttl_s=30, max_attempts=3))


@pytest.fixture
def waking(worker, wire):
    """A thread that answers a wake-up; `.answer` holds what it returned."""
    result = SimpleNamespace(answer=None)

    def answer():
        result.answer = run_next(worker)

    # Opens the connection and loads the script, which both need replies.
    assert not run_next(worker)
    result.thread = threading.Thread(target=answer, daemon=True)
    yield result
    wire.replies.set()
    result.thread.join(10)


def lose_the_replies_of_three_claims(wire, direct, waking, wait_until):
    """Start the worker on a queued item, and drop the replies until three timeouts of its client are over."""
    wire.replies.clear()
    waking.thread.start()
    wait_until(lambda: direct.redis.zcard(keys.LEASES) == 1, what="the claim")
    lost_until = time.monotonic() + 3 * TIMEOUT_S
    wait_until(lambda: time.monotonic() > lost_until, what="three timeouts")
    wire.replies.set()


def test_an_item_whose_claim_lost_its_replies_runs_in_its_first_attempt(wire, worker, direct, waking, wait_until, item):
    direct.accept("job", [item()], record={})

    lose_the_replies_of_three_claims(wire, direct, waking, wait_until)
    waking.thread.join(10)

    [done] = direct.job("job").items
    assert (waking.answer, done.state, done.attempt, done.fence) == (True, State.SUCCEEDED, 1, 1)


def test_a_worker_that_drains_while_its_claim_is_not_answered_hands_the_item_over(
    wire, worker, direct, waking, wait_until, item
):
    direct.accept("job", [item()], record={})
    wire.replies.clear()
    waking.thread.start()
    wait_until(lambda: direct.redis.zcard(keys.LEASES) == 1, what="the claim")

    worker.state.start_draining()
    wire.replies.set()
    waking.thread.join(10)

    [queued] = direct.job("job").items
    assert (waking.answer, queued.state, queued.attempt) == (False, State.QUEUED, 0)
    assert direct.redis.llen(keys.wake_list("flux2")) == 1
