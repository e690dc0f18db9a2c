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


def test_a_store_that_hangs_blocks_one_caller_and_is_named_to_the_others():
    store = Store()
    slow, patient = StorageProbe(store, max_age_s=0, hang_s=0), StorageProbe(store, max_age_s=0, hang_s=60)
    for probe, expected in ((slow, "no answer for 0 s"), (patient, "ok")):
        assert probe.state() == "ok"
        store.may_answer.clear()
        store.began.clear()
        caller = threading.Thread(target=probe.state)
        caller.start()
        assert store.began.wait(10)

        assert probe.state() == expected

        store.may_answer.set()
        caller.join()
        assert probe.state() == "ok"
