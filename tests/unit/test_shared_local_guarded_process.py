"""Processes that cannot outlive the one that started them."""

import errno
import os
import signal
import subprocess

import pytest

from shared.local.guarded_process import GuardedProcess


def test_a_process_whose_guard_does_not_start_is_ended(monkeypatch):
    start, started = subprocess.Popen, []

    def start_one(command, **options):
        if started:
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        started.append(start(command, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start_one)
    with pytest.raises(BlockingIOError):
        GuardedProcess(["/bin/sleep", "60"], environment={"PATH": os.defpath})
    assert started[0].returncode == -signal.SIGKILL
