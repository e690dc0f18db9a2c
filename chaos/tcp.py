"""A TCP proxy between one process and Redis, whose connections can be cut."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Self

from shared.local.ports import LOOPBACK

_CHUNK = 65_536
_POLL_S = 0.05


class Wire:
    """Listens on a free loopback port and forwards every connection to `port`.

    Attributes:
        open: clear it to stop bytes in both directions, as on a network that drops every packet.
        replies: clear it to drop every byte that the target sends: commands take effect, and nobody learns of it.
    """

    def __init__(self, port: int) -> None:
        self.open = threading.Event()
        self.open.set()
        self.replies = threading.Event()
        self.replies.set()
        self._target = port
        self._stopped = threading.Event()
        self._listener = socket.create_server((LOOPBACK, 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._thread = threading.Thread(target=self._accept, daemon=True, name="chaos-wire")

    @property
    def port(self) -> int:
        """The port to connect to instead of the target's."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.open.set()
        self._listener.close()
        self.reset()
        self._thread.join()

    def reset(self) -> None:
        """Break every connection."""
        while self._pairs:
            for end in self._pairs.pop():
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                if not select.select([self._listener], [], [], _POLL_S)[0]:
                    continue
                near, _ = self._listener.accept()
            except (OSError, ValueError):
                return
            threading.Thread(target=self._join, args=[near], daemon=True, name="chaos-wire").start()

    def _join(self, near: socket.socket) -> None:
        # On a cut network no new connection can be made either.
        self._wait_until_open()
        try:
            far = socket.create_connection((LOOPBACK, self._target))
        except OSError:
            near.close()
            return
        self._pairs.append((near, far))
        threading.Thread(target=self._pass, args=[near, far], daemon=True, name="chaos-wire").start()
        self._pass(far, near, passes=self.replies)

    def _pass(self, source: socket.socket, target: socket.socket, *, passes: threading.Event | None = None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._wait_until_open()
                if passes is None or passes.is_set():
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _wait_until_open(self) -> None:
        while not self.open.wait(_POLL_S) and not self._stopped.is_set():
            pass
