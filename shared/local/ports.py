"""Find free ports, by default on loopback: most servers of a stack are for this host alone."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Sequence

from shared.errors import ServerFailed

LOOPBACK = "127.0.0.1"

# Below the ephemeral ranges of Linux and macOS, even 10000 ports higher, so that no outgoing connection takes a port
# between the check and the server's start.
_PORTS = range(12_000, 22_000)
_TRIES = 500


def require_free_port(port: int, *, owner: str, option: str, host: str = LOOPBACK) -> None:
    """Check that a server can listen on a port.

    Args:
        owner: the server that needs the port, for the message.
        option: the command line's option that chooses the port, for the message.

    Raises:
        ServerFailed: the port is in use, or `host` is no address of this host.
    """
    error = _listen_error(port, host=host)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise ServerFailed(f"{owner}: port {port} on {host} is in use; choose another with {option}")
    raise ServerFailed(f"{owner}: cannot listen on {host}, port {port}: {error.strerror or error}")


def pick_free_port(*, taken: Sequence[int] = (), twin_offset: int = 0) -> int:
    """Return a free loopback port whose twin, `twin_offset` higher, is free too; neither is in `taken`."""
    for port in random.sample(_PORTS, _TRIES):
        pair = {port, port + twin_offset}
        if not pair & set(taken) and all(_listen_error(each, host=LOOPBACK) is None for each in pair):
            return port
    raise ServerFailed(f"no free port between {_PORTS.start} and {_PORTS.stop} on {LOOPBACK}; stop some servers")


def _listen_error(port: int, *, host: str) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Otherwise a port counts as taken for a minute after its last server closed its connections.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None
