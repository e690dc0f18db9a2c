"""A worker that no longer receives wake-ups is ended; one that works, drains or has nothing to do is left alone."""

from types import SimpleNamespace

import pytest

from shared.ledger import Ledger, keys
from shared.settings import QueueSettings
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.slot import Slot
from worker.consumer.watchdog import Watchdog
from worker.consumer.worker_state import WorkerState


@pytest.fixture
def watched(redis_client, settings):
    """A watchdog over an idle worker; `ends` holds the exit statuses."""
    ledger = Ledger(redis_client, QueueSettings())
    slot = Slot(name="test", model="flux2", device="cpu", revision="r", precision="fp32", engines=("exact",))
    state = WorkerState()
    heartbeat = Heartbeat(ledger, slot, state, SimpleNamespace(warm_key="base"))
    ends = []
    worker = SimpleNamespace(
        settings=settings(), ledger=ledger, slot=slot, state=state, heartbeat=heartbeat, exit_process=ends.append
    )
    watchdog = Watchdog(worker, deaf_s=0.1, poll_s=0.01)

    yield SimpleNamespace(watchdog=watchdog, state=state, redis=redis_client, ends=ends)

    watchdog.stop()


def wait_for_polls(watched, wait_until, count=30):
    """Wait until the watchdog has polled often enough to have ended a deaf worker."""
    before = watched.redis.info("commandstats").get("cmdstat_exists", {"calls": 0})["calls"]
    wait_until(
        lambda: watched.redis.info("commandstats").get("cmdstat_exists", {"calls": 0})["calls"] >= before + count,
        what=f"{count} polls",
    )


def test_an_idle_worker_that_leaves_wake_ups_waiting_is_ended(watched, wait_until):
    watched.redis.lpush(keys.wake_list("flux2"), "wake")

    watched.watchdog.start()

    wait_until(lambda: watched.ends, what="the end")
    assert watched.ends[0] == 70


def test_a_worker_that_handles_a_wake_up_is_left_alone_however_long_that_takes(watched, wait_until):
    watched.redis.lpush(keys.wake_list("flux2"), "wake")
    check_health, polls = watched.watchdog._check_health, []
    watched.watchdog._check_health = lambda: polls.append(check_health()) or polls[-1]

    with watched.state.handling_wakeup():
        watched.watchdog.start()
        wait_until(lambda: len(polls) > 30, what="30 polls")  # three times as long as a deaf worker has
        assert watched.ends == []
    wait_until(lambda: watched.ends, what="the end")


def test_an_idle_worker_without_wake_ups_is_left_alone(watched, wait_until):
    watched.watchdog.start()
    wait_for_polls(watched, wait_until)

    assert watched.ends == []


def test_a_worker_that_receives_wake_ups_is_left_alone_however_many_wait(watched, wait_until):
    watched.redis.lpush(keys.wake_list("flux2"), "wake")
    watched.watchdog.start()

    def receives_another():
        with watched.state.handling_wakeup():
            return watched.state.snapshot().wakeups > 30

    wait_until(receives_another, what="30 wake-ups")

    assert watched.ends == []


def test_a_worker_is_left_alone_while_redis_is_a_replica_which_hands_out_no_wake_ups(watched, wait_until):
    watched.redis.lpush(keys.wake_list("flux2"), "wake")
    # No process listens on port 1, so the replica keeps its data.
    watched.redis.replicaof("127.0.0.1", 1)
    try:
        watched.watchdog.start()
        wait_for_polls(watched, wait_until)
        assert watched.ends == []
    finally:
        watched.redis.replicaof("NO", "ONE")

    wait_until(lambda: watched.ends, what="the end")
