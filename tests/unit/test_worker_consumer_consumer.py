"""The start of a worker process, before Celery listens."""

import signal
from types import SimpleNamespace

import pytest

from worker.consumer.consumer import _wait_until_trusted
from worker.consumer.worker_state import WorkerState


def trusted(when_asked=lambda: None):
    """Ask whether a worker may start whose device has no faults; `when_asked` is called while Redis answers."""

    def count_faults(slot, *, window_s):
        when_asked()
        return 0

    worker = SimpleNamespace(
        slot=SimpleNamespace(name="test"),
        state=WorkerState(),
        ledger=SimpleNamespace(workers=SimpleNamespace(count_faults=count_faults)),
    )
    return _wait_until_trusted(worker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_during_the_last_look_at_the_faults_is_not_lost(number):
    before = signal.getsignal(number)

    assert not trusted(lambda: signal.raise_signal(number))
    assert signal.getsignal(number) is before


def test_a_worker_without_faults_starts():
    assert trusted()
