"""Run a process and everything that it starts; none of them can outlive this process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_POLL_S = 0.02

# Kills the process group unless this process writes "stopped" first. `read` also returns when this process dies, even
# by SIGKILL, because the kernel then closes the pipe. PR_SET_PDEATHSIG would fire when the thread that started the
# process ends, and macOS lacks it.
_GUARD = 'read -r word; [ "$word" = stopped ] || kill -KILL "-$1"'


class GuardedProcess:
    """A process in its own session, started by the constructor.

    Args:
        command: program and arguments.
        folder: working directory; None is this process' own.
        environment: the process' whole environment.
        output: file to which standard output and standard error go; None connects them to `self.output`.
        pass_fds: file descriptors that the process inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str],
        output: IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        #: When the process was started, by the monotonic clock.
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "flux2-guard", str(self._process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            # Closes its output, and waits for its end.
            with self._process:
                self._signal(signal.SIGKILL)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> IO[bytes] | None:
        """What the process writes, if the constructor got no file for it."""
        return self._process.stdout

    @property
    def status(self) -> int | None:
        """The exit status as that of `Popen.returncode`; None while the process runs."""
        # `poll` would reap it. Its id could then become that of a foreign process group, which `stop` would kill.
        if not hasattr(os, "waitid"):  # macOS with Python before 3.13
            return self._process.poll()
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return self._process.poll()
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def terminate(self) -> None:
        """Send SIGTERM to the process and to all that it started, and return at once."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process and to all that it started, and return at once."""
        self._signal(signal.SIGKILL)

    def stop(self, *, grace_s: float) -> None:
        """Send SIGTERM, and SIGKILL after `grace_s` seconds; safe to repeat."""
        self.terminate()
        deadline_s = time.monotonic() + grace_s
        while self.status is None and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        # The group may hold processes that the process started and left behind.
        self._signal(signal.SIGKILL)
        # Reaped last: until then no other process group can have the id that this method and the guard signal.
        if self._guard.returncode is None:
            self._guard.communicate(b"stopped\n")
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the group, unless the process was reaped."""
        if self._process.returncode is None:
            # macOS refuses to signal a group whose processes have all ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
