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
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
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
        for pair in list(self._pairs):
            _shut_down(pair)

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
        with near:
            # On a cut network no new connection can be made either.
            self._wait_until_open()
            far = self._connect()
            if far is None:
                self.refused += 1
                return
            with far:
                self._forward(near, far)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        pair = (near, far)
        self._pairs.add(pair)
        if self._stopped.is_set():
            _shut_down(pair)
        out = threading.Thread(target=self._pass, args=pair, daemon=True, name="chaos-wire")
        out.start()
        self._pass(far, near, passes=self.replies)
        out.join()
        self._pairs.discard(pair)

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
        _shut_down((source, target))

    def _wait_until_open(self) -> None:
        while not self.open.wait(_POLL_S) and not self._stopped.is_set():
            pass


def _shut_down(pair: tuple[socket.socket, socket.socket]) -> None:
    """Let both directions end, and with them the thread that closes the sockets."""
    for end in pair:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
