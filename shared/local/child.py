"""Run a server as a child process that cannot outlive this one.

`shared.local.servers` decides which servers and with which options; this module only owns the process: its folder,
its log, its wait for readiness and its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from shared.errors import ServerFailed

LOOPBACK = "127.0.0.1"
_POLL_S = 0.02
_LOCK_WAIT_S = 2.0
# Below Linux' and macOS' ephemeral ranges, with port + 10000 too, so no outgoing connection takes them meanwhile.
_PORTS = range(12_000, 22_000)

# Reads until this process says that all is well or dies, whichever is first: the kernel closes the pipe even on
# SIGKILL. Unlike PR_SET_PDEATHSIG this survives the end of the thread that started the server, and works on macOS.
_GUARD = 'read -r word; [ "$word" = stopped ] || kill -KILL "-$1"'


class Child:
    """One server process in a session of its own, with a folder that no other process uses meanwhile.

    Args:
        name: for messages, e.g. `Redis`.
        command: program and arguments.
        folder: its working directory, which exists; its output is appended to `server.log` in it.
        environment: all that it sees of one; None: what a foreign server needs, with no credentials or settings.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = folder / "server.log"
        self._command = list(command)
        self._folder = folder
        self._environment = environment or {"PATH": os.defpath, "HOME": str(folder), "LC_ALL": "C"}
        #: When it was started last, by the monotonic clock.
        self.started_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._process.pid if self._process else None

    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise `ServerFailed`, with the end of its log, if the process has ended by itself."""
        status = self._process.poll() if self._process else None
        if status is not None:
            raise ServerFailed(f"{self.name} ended with status {status}:\n{self._log_tail()}")

    def start(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Start the process and return when `ready()` is true.

        Raises:
            ServerFailed: another process uses the folder, or the server ended or was not ready within `timeout_s`
                seconds; it does not run then.
        """
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.stop, grace_s=0)
            self._spawn()
            deadline = time.monotonic() + timeout_s
            while not ready():
                self.check()
                if time.monotonic() > deadline:
                    raise ServerFailed(f"{self.name} was not ready within {timeout_s:g} s:\n{self._log_tail()}")
                time.sleep(_POLL_S)
            on_failure.pop_all()

    def terminate(self) -> None:
        """Ask the process to end, without waiting; `stop` waits."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def stop(self, *, grace_s: float = 3.0) -> None:
        """Ask the process to end; kill it when it has not within `grace_s` seconds. Safe to repeat."""
        self.terminate()
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.communicate(b"stopped\n")

    def restart(self) -> None:
        """Start anew what has ended, without waiting for readiness; one that still runs is killed first."""
        self.stop(grace_s=0)
        self._spawn()

    def _spawn(self) -> None:
        self.started_s = time.monotonic()
        with _locked(self._folder, name=self.name) as lock, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "flux2-guard", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _log_tail(self, lines: int = 15) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:]) or "(its log is empty)"


@contextlib.contextmanager
def _locked(folder: Path, *, name: str) -> Iterator[int]:
    """Yield a lock's descriptor; a process that inherits it holds the folder until it ends, however it ends."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise ServerFailed(f"{name}: another process is using {folder}; stop it or choose another folder")
            time.sleep(_POLL_S)
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _port_is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free_port(port: int, *, of: str) -> None:
    """Refuse a loopback port that another server has.

    Raises:
        ServerFailed: it does; names the part whose port it was to be.
    """
    if not _port_is_free(port):
        raise ServerFailed(f"{of}: port {port} on {LOOPBACK} is in use; choose another")


def pick_free_port(*, taken: Sequence[int] = (), also: int = 0) -> int:
    """Return a loopback port that is free, as is the port `also` higher; neither is in `taken`."""
    for port in random.sample(_PORTS, 500):
        if not {port, port + also} & set(taken) and _port_is_free(port) and _port_is_free(port + also):
            return port
    raise ServerFailed(f"no free port between {_PORTS.start} and {_PORTS.stop} on {LOOPBACK}")
