"""A probe of the store is at most a second old, and a store that hangs is noticed while it does."""

import threading
from inspect import signature

from api.probe import StorageProbe
from shared.errors import StorageUnavailable


class Store:
    def __init__(self):
        self.checks = 0
        self.fault = ""
        self.began = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def check(self):
        self.checks += 1
        self.began.set()
        assert self.may_answer.wait(10)
        if self.fault:
            raise StorageUnavailable(self.fault)


def test_a_result_is_kept_for_a_second_and_no_longer():
    store = Store()
    kept, fresh = StorageProbe(store, max_age_s=60), StorageProbe(store, max_age_s=0)

    assert (kept.state(), fresh.state(), store.checks) == ("ok", "ok", 2)
    store.fault = "the bucket is gone"

    assert (kept.state(), fresh.state(), store.checks) == ("ok", "the bucket is gone", 3)
    assert signature(StorageProbe).parameters["max_age_s"].default == 1.0


def test_a_store_that_hangs_from_the_start_is_named_to_each_caller_in_time(wait_until):
    store = Store()
    store.may_answer.clear()
    probe = StorageProbe(store, max_age_s=60, hang_s=0)

    assert (probe.state(), probe.state()) == ("no answer for 0 s", "no answer for 0 s")

    assert store.began.wait(10)
    assert store.checks == 1
    store.may_answer.set()
    wait_until(lambda: probe.state() == "ok", what="an answer")
    assert store.checks == 1


def test_a_store_that_begins_to_hang_is_named_in_place_of_the_last_result(wait_until):
    store = Store()
    probe = StorageProbe(store, max_age_s=0, hang_s=0.05)
    wait_until(lambda: probe.state() == "ok", what="an answer")

    store.may_answer.clear()

    wait_until(lambda: probe.state().startswith("no answer for "), what="a hang")
    store.may_answer.set()
    wait_until(lambda: probe.state() == "ok", what="an answer")


def test_callers_get_the_last_result_while_another_one_waits_for_a_check():
    store = Store()
    probe = StorageProbe(store, max_age_s=0, hang_s=60)
    assert probe.state() == "ok"
    store.may_answer.clear()
    store.began.clear()
    store.fault = "the bucket is gone"
    seen = []
    caller = threading.Thread(target=lambda: seen.append(probe.state()))
    caller.start()
    assert store.began.wait(10)

    assert (probe.state(), store.checks) == ("ok", 2)

    store.may_answer.set()
    caller.join()
    assert seen == ["the bucket is gone"]


def test_a_check_that_breaks_is_a_fault_and_not_an_endless_check(monkeypatch):
    store = Store()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    store.check = lambda: 1 / 0
    probe = StorageProbe(store, max_age_s=0, hang_s=60)

    assert [probe.state(), probe.state()] == ["the check of the store broke; see the log of the API"] * 2
