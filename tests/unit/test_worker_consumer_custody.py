"""The lease of an item has one owner at a time, and only the owner ends it."""

from types import SimpleNamespace

import pytest

from worker.consumer.custody import Custody, Owner
from worker.consumer.worker_state import WorkerState

CLAIM = SimpleNamespace(item_id="job:0", spec=SimpleNamespace(adapter_key="base"))


class ScriptedLease:
    """Notes when it starts and closes; may refuse to start."""

    def __init__(self, *, refuses=False):
        self.events, self._refuses = [], refuses

    def start(self):
        if self._refuses:
            raise RuntimeError("can't start new thread")
        self.events.append("started")

    def close(self):
        self.events.append("closed")


def custody_of(lease):
    state = WorkerState()
    return Custody(CLAIM, lease=lease, state=state), state


def test_the_rendering_thread_ends_the_lease_of_an_item_that_it_did_not_pass_on():
    lease = ScriptedLease()
    custody, state = custody_of(lease)

    custody.open()
    assert (state.claims, state.snapshot().rendering) == ((CLAIM,), CLAIM)
    custody.close(Owner.STORING)
    assert lease.events == ["started"]
    custody.close(Owner.RENDERING)

    assert lease.events == ["started", "closed"]
    assert state.claims == ()


def test_after_the_hand_off_only_the_storing_thread_ends_the_lease():
    lease = ScriptedLease()
    custody, state = custody_of(lease)
    custody.open()

    custody.pass_to_storing()
    assert (state.claims, state.snapshot().rendering) == ((CLAIM,), None)
    custody.close(Owner.RENDERING)
    assert lease.events == ["started"]
    custody.close(Owner.STORING)
    custody.close(Owner.STORING)

    assert lease.events == ["started", "closed"]
    assert state.claims == ()


def test_a_lease_cannot_be_passed_on_twice():
    custody, _ = custody_of(ScriptedLease())
    custody.open()
    custody.pass_to_storing()

    with pytest.raises(RuntimeError, match="job:0: the rendering thread does not own the lease"):
        custody.pass_to_storing()


def test_a_lease_that_cannot_start_leaves_no_claim():
    custody, state = custody_of(ScriptedLease(refuses=True))

    with pytest.raises(RuntimeError, match="can't start new thread"):
        custody.open()

    assert state.claims == ()
