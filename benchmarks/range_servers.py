"""Servers that count what they are asked for: a web server with one file, and a proxy in front of S3."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Self

_POLL_S = 0.02
_CHUNK = 64 * 1024
_REQUEST_LINE = re.compile(rb"[A-Z]+ \S+ HTTP/1\.1\r\n")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class _Counting(ThreadingTCPServer):
    """A server in a thread, with a count of requests and of the bytes of its answers."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler: Callable[..., BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=[_POLL_S], name="bench-server")
        self.reset()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def reset(self) -> None:
        """Count from zero."""
        self.requests = self.bytes_sent = 0

    def count(self, *, requests: int = 0, bytes_sent: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.bytes_sent += bytes_sent

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class FileServer(_Counting, ThreadingHTTPServer):
    """Serves ranges of one file, under every path, with a strong ETag."""

    def __init__(self, file: Path) -> None:
        super().__init__(_FileHandler)
        self.file = file

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.place}"


class _FileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        size_bytes = self.server.file.stat().st_size
        wanted = _RANGE.fullmatch(self.headers["Range"] or "")
        assert wanted is not None, "a submit reads ranges only"
        first, last = int(wanted[1]), min(int(wanted[2]), size_bytes - 1)
        with self.server.file.open("rb") as file:
            file.seek(first)
            body = file.read(last + 1 - first)
        self.server.count(requests=1, bytes_sent=len(body))
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size_bytes}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class CountingProxy(_Counting):
    """Passes connections on to a port of this host; the bytes are those of whole answers, with their headers."""

    def __init__(self, port: int) -> None:
        super().__init__(_ProxyHandler)
        self.target = port


class _ProxyHandler(BaseRequestHandler):
    server: CountingProxy
    request: socket.socket

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as target:
            answers = threading.Thread(target=self._pass_answers, args=[target], name="bench-answers")
            answers.start()
            with contextlib.suppress(OSError):
                while data := self.request.recv(_CHUNK):
                    self.server.count(requests=len(_REQUEST_LINE.findall(data)))
                    target.sendall(data)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
            answers.join()

    def _pass_answers(self, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := target.recv(_CHUNK):
                # Before it is sent: whoever has received it finds it counted.
                self.server.count(bytes_sent=len(data))
                self.request.sendall(data)
