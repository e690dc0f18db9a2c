"""Find free ports on loopback, for servers that only this host may reach."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

from shared.errors import ServerFailed

LOOPBACK = "127.0.0.1"

# Below the ephemeral ranges of Linux and macOS, even 10000 ports higher, so that no outgoing connection takes a port
# between the check and the server's start.
_PORTS = range(12_000, 22_000)
_TRIES = 500


def require_free_port(port: int, *, owner: str) -> None:
    """Check that no other server listens on a loopback port.

    Raises:
        ServerFailed: the port is in use; the message names `owner`, the server that needs it.
    """
    if not _port_is_free(port):
        raise ServerFailed(f"{owner}: port {port} on {LOOPBACK} is in use; choose another")


def pick_free_port(*, taken: Sequence[int] = (), twin_offset: int = 0) -> int:
    """Return a free loopback port whose twin, `twin_offset` higher, is free too; neither is in `taken`."""
    for port in random.sample(_PORTS, _TRIES):
        pair = {port, port + twin_offset}
        if not pair & set(taken) and all(_port_is_free(each) for each in pair):
            return port
    raise ServerFailed(f"no free port between {_PORTS.start} and {_PORTS.stop} on {LOOPBACK}; stop some servers")


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Otherwise a port counts as taken for a minute after its last server closed its connections.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
