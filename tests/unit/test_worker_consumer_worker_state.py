"""Threads and signal handlers may change the worker's state at any moment; the heartbeat reports it."""

import threading
from types import SimpleNamespace

from shared.metrics.tally import PROCESS
from worker.consumer.worker_state import WorkerState

FACTS = {"adapters": "", "base_drift": "0"}


def claim(item_id, key="sha@1"):
    adapters = [SimpleNamespace(path=f"{key}.safetensors")]
    return SimpleNamespace(item_id=item_id, spec=SimpleNamespace(adapter_key=key, adapters=adapters))


def report(state, merged_key="merged"):
    return state.snapshot().report(merged_key=merged_key)


def test_an_idle_worker_advertises_what_is_merged():
    assert report(WorkerState()) == {"state": "ready", "item": "", "warm": "merged", **FACTS}


def test_an_items_adapters_are_advertised_from_its_claim_until_it_has_rendered():
    state, first = WorkerState(), claim("job:0")

    state.add_claim(first)
    assert report(state) == {
        "state": "busy",
        "item": "job:0",
        "warm": "sha@1",
        **FACTS,
        "adapters": "sha@1.safetensors",
    }

    state.finish_rendering(first)
    assert report(state) == {"state": "busy", "item": "job:0", "warm": "merged", **FACTS}

    state.remove_claim(first)
    assert report(state)["state"] == "ready"


def test_merged_adapters_are_named_for_people_after_their_item_has_rendered_too():
    state, first = WorkerState(), claim("job:0", "sha@1")
    state.add_claim(first)
    state.remove_claim(first)

    assert report(state, "sha@1")["adapters"] == "sha@1.safetensors"
    assert report(state, "base")["adapters"] == "base"
    assert report(state, "other@1")["adapters"] == ""


def test_the_newest_claim_is_the_one_that_is_reported():
    state, stored, rendering = WorkerState(), claim("job:0", "old"), claim("job:1", "new")
    state.add_claim(stored)
    state.finish_rendering(stored)
    state.add_claim(rendering)
    assert (report(state)["item"], report(state)["warm"]) == ("job:1", "new")

    state.remove_claim(stored)
    assert (report(state)["item"], report(state)["warm"]) == ("job:1", "new")

    state.remove_claim(rendering)
    assert (report(state)["item"], report(state)["warm"]) == ("", "merged")


def test_a_draining_worker_says_so_whatever_it_does():
    state = WorkerState()
    state.add_claim(claim("job:0"))
    state.change_condition("faulty")

    state.start_draining()

    assert state.is_draining
    assert report(state)["state"] == "draining"


def test_each_corrupted_weight_counts_once_although_the_renderer_states_their_sum():
    state = WorkerState()
    PROCESS.take()

    for corrupted in (0, 3, 3, 5):
        state.record_corrupted(corrupted)

    assert PROCESS.take() == {"corrupted_parameters": 5}


def test_corrupted_weights_are_reported_as_base_drift():
    state = WorkerState()
    state.record_corrupted(3)
    assert report(state)["base_drift"] == "3"


def test_each_change_of_claims_and_condition_is_announced_and_a_repeated_condition_is_not():
    state, reports = WorkerState(), []
    state.on_change(lambda: reports.append(report(state)["state"]))
    only = claim("job:0")

    state.add_claim(only)
    state.remove_claim(only)
    changed = [state.change_condition("faulty"), state.change_condition("faulty"), state.change_condition("ready")]

    assert changed == [True, False, True]
    assert reports == ["busy", "ready", "faulty", "ready"]


def test_a_signal_handler_can_start_a_drain_while_its_thread_holds_the_lock():
    state = WorkerState()

    def interrupted():
        with state._lock:
            state.start_draining()

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(5)

    assert not thread.is_alive()
    assert state.is_draining


def test_changes_from_many_threads_are_all_kept():
    state = WorkerState()

    def run(number):
        for repeat in range(50):
            with state.handling_wakeup():
                mine = claim(f"{number}:{repeat}")
                state.add_claim(mine)
                state.finish_rendering(mine)
                state.remove_claim(mine)

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    after = state.snapshot()
    assert (after.wakeups, after.answering, after.claims, after.rendering) == (400, False, (), None)


def test_a_store_that_failed_counts_as_failed_until_it_answers():
    state = WorkerState()
    assert not state.storage_failed
    state.record_storage_failure()
    assert state.storage_failed
    state.record_storage_recovery()
    assert not state.storage_failed
