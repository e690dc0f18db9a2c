"""The caretaker on a real Redis: wake-ups are sent and dropped as needed, and errors do not end its thread."""

import pytest

from shared.caretaker import Caretaker
from shared.celery_app import make_celery
from shared.errors import LedgerUnavailable
from shared.job import ReferenceRef
from shared.ledger import Ledger, keys
from shared.settings import QueueSettings

WAKES = keys.wake_list("flux2")


@pytest.fixture
def caretaker(redis_client, redis_url):
    options = QueueSettings(reap_s=0.01, audit_s=0.01)
    celery = make_celery(redis_url, side="api", timeout_s=2)
    made = Caretaker(Ledger(redis_client, options), celery, options)
    yield made
    made.stop()
    celery.close()


@pytest.fixture
def accept(caretaker, item):
    """Accept one job of `count` items."""
    return lambda count: caretaker._ledger.accept("job", [item()] * count, record={}).job_id


def test_the_wake_ups_of_canceled_items_are_dropped_at_the_second_audit(caretaker, accept, redis_client):
    job_id = accept(200)
    redis_client.lpush(WAKES, *["message"] * 1000)
    caretaker._ledger.cancel(job_id)

    caretaker.audit()
    assert redis_client.llen(WAKES) == 1000
    caretaker.audit()

    # No item is queued any more; 100 wake-ups stay for claims that are under way.
    assert redis_client.llen(WAKES) == 100
    for _ in range(3):
        caretaker.audit()
    assert redis_client.llen(WAKES) == 100


def test_as_many_wake_ups_as_items_are_queued_are_never_dropped(caretaker, accept, redis_client):
    accept(200)
    redis_client.lpush(WAKES, *["message"] * 1000)

    for _ in range(4):
        caretaker.audit()

    assert redis_client.llen(WAKES) == 300


def test_a_surplus_that_only_one_audit_sees_stays(caretaker, redis_client):
    for present in (1000, 50, 1000):
        redis_client.delete(WAKES)
        redis_client.lpush(WAKES, *["message"] * present)
        caretaker.audit()

    assert redis_client.llen(WAKES) == 1000


def test_pools_that_no_worker_serves_are_audited_too(caretaker, redis_client):
    unserved = keys.wake_list("flux2_klein_9b+fast")
    redis_client.lpush(unserved, *["message"] * 300)

    caretaker.audit()
    caretaker.audit()

    assert redis_client.llen(unserved) == 100


def test_wake_ups_that_were_missing_in_two_audits_are_sent_again(caretaker, accept, redis_client):
    accept(3)
    redis_client.lpush(WAKES, "message")

    caretaker.audit()
    assert redis_client.llen(WAKES) == 1
    caretaker.audit()

    assert redis_client.llen(WAKES) == 3


def test_the_wake_ups_of_jobs_with_references_or_noise_levels_are_audited_apart_from_those_that_earlier_versions_know(
    caretaker, item, redis_client
):
    edit = item(references=(ReferenceRef(slot=1, sha256="ab" * 32),))
    caretaker._ledger.accept("job", [item(), edit], record={})
    caretaker._ledger.accept("few", [item(sigmas=(1.0, 0.5)), item()], record={})
    wakes = [keys.wake_list(f"flux2+{feature}") for feature in ("references", "sigmas")]
    # An earlier version leads, which knows no such pool.
    caretaker._ledger.wakeups.try_lead_audit("old")
    caretaker._ledger.wakeups.try_lead_audit("old", "large")

    for _ in range(3):
        caretaker.audit()
        caretaker.audit("large")
    assert [redis_client.llen(name) for name in wakes] == [0, 0]
    for _ in range(2):
        caretaker._lead()

    assert [redis_client.llen(name) for name in wakes] == [2, 2]
    assert redis_client.llen(WAKES) == 0


@pytest.fixture
def caretaker_of_slot(caretaker):
    """A worker's caretaker that passes in each second."""
    return Caretaker(caretaker._ledger, caretaker._celery, caretaker._settings, is_of_slot=True)


@pytest.mark.parametrize(
    ("slots", "shortest_s", "longest_s"), [(32, 1, 1), (320, 5, 15), (1920, 30, 90), (10_000, 30, 90)]
)
def test_the_caretakers_of_a_large_fleet_pass_less_often(caretaker_of_slot, slots, shortest_s, longest_s, redis_client):
    redis_client.zadd(keys.SLOTS, {f"slot-{number}": 1 for number in range(slots)})

    caretaker_of_slot.reap()

    pauses = [caretaker_of_slot._pause_s(1.0) for _ in range(200)]
    assert shortest_s <= min(pauses) <= max(pauses) <= longest_s


def test_the_leader_and_the_caretaker_of_an_api_never_pass_less_often(caretaker, caretaker_of_slot, redis_client):
    redis_client.zadd(keys.SLOTS, {f"slot-{number}": 1 for number in range(10_000)})
    caretaker.reap()
    caretaker_of_slot.reap()
    assert caretaker_of_slot._pause_s(1.0) > 1

    caretaker_of_slot._lead()

    assert caretaker._pause_s(1.0) == caretaker_of_slot._pause_s(1.0) == 1
    # Another process leads now.
    leaders = (keys.AUDIT_LEADER, keys.LARGE_AUDIT_LEADER, keys.REFERENCES_AUDIT_LEADER, keys.SIGMAS_AUDIT_LEADER)
    for leader in leaders:
        redis_client.set(leader, "another")
    caretaker_of_slot._lead()
    assert caretaker_of_slot._pause_s(1.0) > 1


def test_an_error_in_one_duty_stops_neither_the_caretaker_nor_its_other_duties(
    caretaker, monkeypatch, wait_until, caplog
):
    reaps, forgets = [], []

    def reap():
        reaps.append(1)
        raise ValueError("a record of another version")

    monkeypatch.setattr(caretaker, "reap", reap)
    monkeypatch.setattr(caretaker._ledger, "forget_ended", lambda: forgets.append(1))
    caretaker.start()

    wait_until(lambda: len(reaps) > 2 and len(forgets) > 2, what="three passes")

    assert caretaker.is_alive()
    logged = [line for line in caplog.records if line.message == "caretaker failed"]
    assert {line.duty for line in logged} == {"reap"}
    assert "a record of another version" in str(logged[0].exc_info[1])


def test_each_pass_calls_redis_once_while_it_is_away(caretaker, monkeypatch, wait_until, caplog):
    def away():
        calls.append("reap")
        if is_away:
            raise LedgerUnavailable("Redis did not answer")

    calls, is_away = [], True
    monkeypatch.setattr(caretaker, "reap", away)
    monkeypatch.setattr(caretaker._ledger.wakeups, "try_lead_audit", lambda *_, **__: calls.append("audit"))
    caplog.set_level("INFO")
    caretaker.start()
    wait_until(lambda: len(calls) > 2, what="three passes")

    assert set(calls) == {"reap"}
    # Not once for each pass: an outage of an hour would fill the log.
    assert caplog.text.count("caretaker waits for Redis") == 1
    assert "reaches Redis again" not in caplog.text

    is_away = False
    wait_until(lambda: calls.count("audit") > 2, what="passes after the outage")
    assert caretaker.is_alive()
    assert caplog.text.count("caretaker waits for Redis") == 1
    assert caplog.text.count("caretaker reaches Redis again") == 1
