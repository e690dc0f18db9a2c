"""A worker that listens no more is noticed; one that works, drains or has nothing to do is left alone."""

from types import SimpleNamespace

import pytest

from shared.ledger import Ledger, keys
from shared.settings import QueueSettings
from worker.consumer.heartbeat import Slot
from worker.consumer.watchdog import Watch


@pytest.fixture
def watched(redis_client, settings):
    """Start a watch over an idle worker; `ends` holds the statuses it ended with."""
    ledger = Ledger(redis_client, QueueSettings())
    slot = Slot(ledger, name="test", model="flux2", device="cpu", revision="r", precision="fp32", engines=["exact"])
    ends = []
    worker = SimpleNamespace(settings=settings(), ledger=ledger, slot=slot, end=ends.append)
    watch = Watch(worker, deaf_s=0.1, look_s=0.01)

    yield SimpleNamespace(watch=watch, slot=slot, redis=redis_client, ends=ends)

    watch.stop()
    watch.join(5)


def looks(watched, wait_until, count=30):
    """Wait until the watch has looked often enough to have given up on a deaf worker."""
    before = watched.redis.info("commandstats").get("cmdstat_llen", {"calls": 0})["calls"]
    wait_until(
        lambda: watched.redis.info("commandstats").get("cmdstat_llen", {"calls": 0})["calls"] >= before + count,
        what=f"{count} looks",
    )


def test_an_idle_worker_with_waiting_wake_ups_is_ended_to_be_started_again(watched, wait_until):
    watched.redis.lpush(keys.wake_list("flux2"), "wake")

    watched.watch.start()

    wait_until(lambda: watched.ends, what="the end")
    assert watched.ends[0] == 70


def test_a_worker_that_is_dealing_with_a_wake_up_stays_however_long_it_takes(watched, wait_until):
    watched.redis.lpush(keys.wake_list("flux2"), "wake")
    watched.slot.answering = True
    hears, looked = watched.watch._hears, []
    watched.watch._hears = lambda: looked.append(hears()) or looked[-1]
    watched.watch.start()

    wait_until(lambda: len(looked) > 30, what="30 looks")  # three times as long as a deaf one has

    assert watched.ends == []
    watched.slot.answering = False
    wait_until(lambda: watched.ends, what="the end")


def test_an_idle_worker_without_wake_ups_stays(watched, wait_until):
    watched.watch.start()
    looks(watched, wait_until)

    assert watched.ends == []


def test_a_worker_that_takes_wake_ups_stays_however_many_wait(watched, wait_until):
    watched.redis.lpush(keys.wake_list("flux2"), "wake")
    watched.watch.start()

    def takes_one():
        watched.slot.wakes += 1
        return watched.slot.wakes > 30

    wait_until(takes_one, what="30 wake-ups")

    assert watched.ends == []
