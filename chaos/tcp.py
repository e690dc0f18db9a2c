"""A TCP proxy between one process and Redis, whose connections can be cut, or between callers and all API processes."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
from typing import Self

from shared.local.ports import LOOPBACK

_CHUNK = 65_536
_POLL_S = 0.05


class Wire:
    """Listens on a free loopback port and forwards each connection to one of `ports`, in turn.

    A port on which nothing listens is passed over, as a load balancer does.

    Attributes:
        open: clear it to stop bytes in both directions, as on a network that drops every packet.
        replies: clear it to drop every byte that the target sends: commands take effect, and nobody learns of it.
        refused: connections that no target took.
    """

    def __init__(self, *ports: int) -> None:
        self.open = threading.Event()
        self.open.set()
        self.replies = threading.Event()
        self.replies.set()
        self.refused = 0
        self._targets = list(ports)
        self._turns = itertools.count()
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
        far = self._connect()
        if far is None:
            self.refused += 1
            near.close()
            return
        self._pairs.append((near, far))
        threading.Thread(target=self._pass, args=[near, far], daemon=True, name="chaos-wire").start()
        self._pass(far, near, passes=self.replies)

    def _connect(self) -> socket.socket | None:
        first = next(self._turns) % len(self._targets)
        for port in self._targets[first:] + self._targets[:first]:
            with contextlib.suppress(OSError):
                return socket.create_connection((LOOPBACK, port))
        return None

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
