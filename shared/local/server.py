"""The base of the embedded servers: a folder, a loopback port, a start that waits for readiness, and a stop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from shared.errors import ServerFailed
from shared.local.child import ChildProcess
from shared.local.ports import require_free_port

_START_TIMEOUT_S = 30.0
_ATTEMPTS = 3
_PORT_TAKEN = re.compile(r"address already in use|port allocation failed", re.IGNORECASE)


class LoopbackServer:
    """A server on a loopback port, as a context manager; subclasses define its command and its readiness."""

    name: str
    #: Option of `flux2 up` that chooses the port.
    port_option: str

    def __init__(self, folder: Path, *, port: int | None) -> None:
        self.folder = folder.absolute()
        self.port = port or 0
        self._requested_port = port
        self._process: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None while the server does not run."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Start the server and return when it answers, within 30 s.

        Raises:
            ServerFailed: the program is not installed, the port or the folder is in use, or the server did not start.
        """
        if self._requested_port:
            require_free_port(self._requested_port, owner=self.name, option=self.port_option)
        try:
            # Prompts and images of everybody are in it.
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ServerFailed(f"{self.name}: {self.folder}: {error.strerror}") from error
        for attempt in range(1, _ATTEMPTS + 1):
            # Each command picks new ports: another process may have taken one since it was found free.
            self._process = ChildProcess(self.name, self._command(), folder=self.folder)
            try:
                self._process.start(self._ready, timeout_s=_START_TIMEOUT_S)
                break
            except ServerFailed as error:
                if attempt == _ATTEMPTS or not _PORT_TAKEN.search(str(error)):
                    raise
        return self

    def stop(self) -> None:
        """Stop the server; safe to repeat. Its folder keeps all data that it acknowledged."""
        if self._process is not None:
            self._process.stop()

    def raise_if_ended(self) -> None:
        """Raise `ServerFailed`, with the end of the log, if the server has ended by itself."""
        if self._process is not None:
            self._process.raise_if_ended()

    def environment(self) -> dict[str, str]:
        """Return the variables that make this project's processes use the server."""
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
