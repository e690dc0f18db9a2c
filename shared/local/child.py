"""Run a server as a child process that cannot outlive this one.

This module owns the process: its folder, its log, its wait for readiness and its end. Callers choose the servers and
their options.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from shared.errors import ServerFailed
from shared.local.guarded_process import GuardedProcess

_POLL_S = 0.02
_LOCK_WAIT_S = 2.0
_TAIL_BYTES = 16_384


class ChildProcess:
    """A server process in its own session, with a folder that no other process uses while it runs.

    Args:
        name: for messages, e.g. `Redis`.
        command: program and arguments.
        folder: working directory, which must exist; the process' output is appended to `server.log` in it.
        environment: the process' whole environment; None gives the minimum that foreign servers need.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = folder / "server.log"
        self._command = list(command)
        self._folder = folder
        # Foreign servers must not receive this process' credentials and settings.
        self._environment = environment or {"PATH": os.defpath, "HOME": str(folder), "LC_ALL": "C"}
        # Where this run's output begins in the log; runs before it are above.
        self._log_start = 0
        self._process: GuardedProcess | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None before the start and after `stop`."""
        return self._process.pid if self._process else None

    @property
    def started_s(self) -> float:
        """When the process was last started, by the monotonic clock; 0 before the start and after `stop`."""
        return self._process.started_s if self._process else 0.0

    def is_alive(self) -> bool:
        """Return whether the process was started and has not ended."""
        return self._process is not None and self._process.status is None

    def raise_if_ended(self) -> None:
        """Raise `ServerFailed`, with the end of this run's log, if the process has ended by itself."""
        status = self._process.status if self._process else None
        if status is not None:
            raise ServerFailed(f"{self.name} ended with status {status}:\n{self._log_tail()}\nlog: {self.log}")

    def start(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Start the process and return when `ready()` is true.

        Raises:
            ServerFailed: another process uses the folder, or the server ended or was not ready within `timeout_s`
                seconds; in either case it no longer runs.
        """
        self.spawn()
        self.wait(ready, timeout_s=timeout_s)

    def wait(self, ready: Callable[[], bool], *, timeout_s: float, on_poll: Callable[[], None] = lambda: None) -> None:
        """Return when `ready()` is true; call `on_poll` before each look.

        Raises:
            ServerFailed: the process ended or was not ready within `timeout_s` seconds; it no longer runs.
        """
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.stop, grace_s=0)
            deadline_s = time.monotonic() + timeout_s
            while not ready():
                on_poll()
                self.raise_if_ended()
                if time.monotonic() > deadline_s:
                    raise ServerFailed(
                        f"{self.name} was not ready within {timeout_s:g} s:\n{self._log_tail()}\nlog: {self.log}"
                    )
                time.sleep(_POLL_S)
            on_failure.pop_all()

    def terminate(self) -> None:
        """Send SIGTERM and return at once; `stop` waits for the end."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, *, grace_s: float = 3.0) -> None:
        """Send SIGTERM, and SIGKILL after `grace_s` seconds; safe to repeat."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(grace_s=grace_s)

    def restart(self) -> None:
        """Start the process again without waiting for readiness; kill it first if it still runs."""
        self.stop(grace_s=0)
        self.spawn()

    def spawn(self) -> None:
        """Start the process without waiting for readiness.

        Raises:
            ServerFailed: another process uses the folder.
        """
        with _locked(self._folder, name=self.name) as lock, self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = GuardedProcess(
                self._command,
                folder=self._folder,
                environment=self._environment,
                output=log,
                # The server inherits the lock, so the folder stays locked until the server ends, even by SIGKILL.
                pass_fds=(lock,),
            )

    def last_line(self) -> str:
        """Return the last line of this run's log, or an empty text."""
        return next(iter(self._log_lines(1)), "")

    def _log_tail(self) -> str:
        return "\n".join(self._log_lines(15)) or "(it wrote no log)"

    def _log_lines(self, count: int) -> list[str]:
        """Return the last lines of this run's log that are not blank."""
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()][-count:]


@contextlib.contextmanager
def _locked(folder: Path, *, name: str) -> Iterator[int]:
    """Lock a folder and yield the lock's file descriptor."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline_s = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(lock):
            if time.monotonic() > deadline_s:
                raise ServerFailed(f"{name}: another process is using {folder}; stop it or choose another folder")
            time.sleep(_POLL_S)
        yield lock
    finally:
        os.close(lock)


# Not filelock, which the workers use for their GPUs: it unlocks before it closes, which would unlock the server's
# inherited descriptor too.
def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
