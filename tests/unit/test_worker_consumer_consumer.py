"""The start of a worker process, before Celery listens."""

import os
import signal
import warnings
from types import SimpleNamespace

import pytest
from celery.platforms import SecurityWarning, check_privileges

from shared.celery_app import make_celery
from worker.consumer.consumer import _accept_root, _wait_until_trusted
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


def test_a_worker_that_runs_as_root_gives_no_warning_because_it_accepts_json_only(monkeypatch):
    accepted = make_celery("redis://127.0.0.1:1/0", side="worker", timeout_s=1).conf.accept_content
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with warnings.catch_warnings(record=True) as before:
        warnings.simplefilter("always")
        check_privileges(accepted)

    with warnings.catch_warnings(record=True) as after:
        warnings.simplefilter("always")
        _accept_root()
        check_privileges(accepted)
        warnings.warn(SecurityWarning("another danger"), stacklevel=1)
        warnings.warn("You're running the worker with superuser privileges", UserWarning, stacklevel=1)

    assert list(accepted) == ["json"]
    assert [warning.category for warning in before] == [SecurityWarning]
    assert [(warning.category, str(warning.message)) for warning in after] == [
        (SecurityWarning, "another danger"),
        (UserWarning, "You're running the worker with superuser privileges"),
    ]
