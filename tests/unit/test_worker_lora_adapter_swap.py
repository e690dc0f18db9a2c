"""The states of one adapter swap: their transitions, and the adapters that each state advertises as warm."""

import threading

import pytest

from shared.errors import AdapterRefused, WeightsLost
from worker.lora.adapter_swap import AdapterSwap, SwapState

OLD, NEW, BASE = "old:1", "new:1", "base"

PATHS = {
    SwapState.IDLE: [],
    SwapState.DRAINING: ["begin"],
    SwapState.WRITING: ["begin", "start_writing"],
    SwapState.READY: ["begin", "start_writing", "finish"],
    SwapState.FAILED: ["begin", "start_writing", "fail"],
}

LEGAL = {
    (SwapState.IDLE, "begin"): SwapState.DRAINING,
    (SwapState.IDLE, "fail"): SwapState.FAILED,
    (SwapState.DRAINING, "start_writing"): SwapState.WRITING,
    (SwapState.DRAINING, "fail"): SwapState.FAILED,
    (SwapState.WRITING, "finish"): SwapState.READY,
    (SwapState.WRITING, "fail"): SwapState.FAILED,
}


def make():
    return AdapterSwap(NEW, replaces=OLD, kind="swapped", reports=())


def call(swap, step, *, failure=None, base_restored=True):
    if step == "fail":
        swap.fail(failure, base_restored=base_restored)
    else:
        getattr(swap, step)()


def in_state(state):
    swap = make()
    for step in PATHS[state]:
        call(swap, step)
    return swap


@pytest.mark.parametrize(("state", "step"), LEGAL)
def test_each_legal_transition_is_made(state, step):
    swap = in_state(state)

    call(swap, step)

    assert swap.state is LEGAL[state, step]


@pytest.mark.parametrize("step", ["begin", "start_writing", "finish", "fail"])
@pytest.mark.parametrize("state", SwapState)
def test_every_other_transition_is_refused_and_changes_nothing(state, step):
    if (state, step) in LEGAL:
        return
    swap = in_state(state)

    with pytest.raises(RuntimeError, match=rf"^an adapter swap that is {state.value} cannot become \w+$"):
        call(swap, step)

    assert swap.state is state


@pytest.mark.parametrize(
    ("state", "warm_key"),
    [
        (SwapState.IDLE, OLD),
        (SwapState.DRAINING, NEW),
        (SwapState.WRITING, NEW),
        (SwapState.READY, NEW),
        (SwapState.FAILED, BASE),
    ],
)
def test_the_warm_key_is_that_of_the_next_step_and_never_of_a_failed_adapter(state, warm_key):
    assert in_state(state).warm_key == warm_key


@pytest.mark.parametrize(
    ("state", "merged_key"),
    [
        (SwapState.IDLE, None),
        (SwapState.DRAINING, None),
        (SwapState.WRITING, None),
        (SwapState.READY, NEW),
        (SwapState.FAILED, BASE),
    ],
)
def test_the_merged_key_is_known_only_when_the_swap_has_ended(state, merged_key):
    assert in_state(state).merged_key == merged_key


def test_after_a_failure_without_restored_base_weights_the_merged_key_is_unknown():
    swap = in_state(SwapState.WRITING)

    swap.fail(None, base_restored=False)

    assert swap.merged_key is None
    assert swap.warm_key == BASE


def test_a_swap_to_the_base_is_ready_and_claimed_from_the_start():
    swap = AdapterSwap.finished_to_base()

    assert (swap.state, swap.warm_key, swap.merged_key) == (SwapState.READY, BASE, BASE)
    assert not swap.can_be_claimed_for(BASE)


def test_the_first_claim_gets_the_kind_and_later_ones_find_no_change():
    swap = make()

    assert swap.can_be_claimed_for(NEW)
    assert not swap.can_be_claimed_for(OLD)
    assert [swap.claim(), swap.claim()] == ["swapped", "none"]
    assert not swap.can_be_claimed_for(NEW)


@pytest.mark.parametrize("error", [AdapterRefused("not finite"), WeightsLost("gone"), KeyboardInterrupt()])
def test_a_failure_is_raised_by_the_first_wait_only(error):
    swap = in_state(SwapState.WRITING)
    swap.fail(error, base_restored=True)

    with pytest.raises(type(error)):
        swap.wait()

    swap.wait()


def test_an_item_can_claim_a_failed_swap_only_until_its_failure_was_raised():
    swap, silent = in_state(SwapState.WRITING), in_state(SwapState.WRITING)
    swap.fail(AdapterRefused("not finite"), base_restored=True)
    silent.fail(None, base_restored=True)

    assert swap.can_be_claimed_for(NEW)
    assert not silent.can_be_claimed_for(NEW)
    with pytest.raises(AdapterRefused):
        swap.wait()
    assert not swap.can_be_claimed_for(NEW)


def test_a_wait_for_a_ready_swap_returns_at_once():
    in_state(SwapState.READY).wait()


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_a_wait_ends_when_another_thread_ends_the_swap(end):
    swap, waiting = in_state(SwapState.WRITING), threading.Event()
    outcome = []

    def wait():
        waiting.set()
        try:
            swap.wait()
            outcome.append("ready")
        except AdapterRefused:
            outcome.append("refused")

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait(20)
    assert outcome == []
    call(swap, end, failure=AdapterRefused("not finite"))
    thread.join(20)

    assert outcome == ["ready" if end == "finish" else "refused"]


def test_of_two_threads_that_end_a_swap_one_is_refused():
    swap, start = in_state(SwapState.WRITING), threading.Barrier(2)
    refused = []

    def end(step):
        start.wait(20)
        try:
            call(swap, step)
        except RuntimeError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=end, args=(step,)) for step in ("finish", "fail")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(refused) == 1
    assert swap.state in (SwapState.READY, SwapState.FAILED)
