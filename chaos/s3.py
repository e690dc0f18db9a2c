"""An HTTP proxy in front of the real S3 server that fails as S3 does: errors, silence, lost replies, outages."""

from __future__ import annotations

import http.client
import random
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self

from shared.local.ports import LOOPBACK

_HOP = {"connection", "transfer-encoding", "content-length", "expect"}
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"

Outcome = Literal["pass", "error", "silence", "ambiguous", "out"]


@dataclass
class Faults:
    """The faults of the proxy: three shares of the requests, each from 0 to 1, and two states.

    Attributes:
        errors: share answered with 503 SlowDown.
        silences: share not answered within the client's timeout.
        ambiguous: share that is carried out, but whose reply is lost.
        bytes_per_s: speed of request bodies; 0 is no limit.
        out: whether no request gets an answer.
    """

    errors: float = 0.0
    silences: float = 0.0
    ambiguous: float = 0.0
    bytes_per_s: int = 0
    out: bool = False


class S3Proxy(ThreadingHTTPServer):
    """Serves on a free loopback port; `faults` may be changed at any time."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target_port: int, *, rng: random.Random, silence_s: float) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.faults = Faults()
        self.counts: dict[Outcome, int] = {"pass": 0, "error": 0, "silence": 0, "ambiguous": 0, "out": 0}
        self.target_port = target_port
        self.silence_s = silence_s
        self.closing = threading.Event()
        self._rng = rng
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}"

    def draw(self) -> Outcome:
        """Draw the outcome of the next request."""
        faults, roll = self.faults, self._rng.random()
        outcome: Outcome = "pass"
        if faults.out:
            outcome = "out"
        elif roll < faults.errors:
            outcome = "error"
        elif roll < faults.errors + faults.silences:
            outcome = "silence"
        elif roll < faults.errors + faults.silences + faults.ambiguous:
            outcome = "ambiguous"
        with self._lock:
            self.counts[outcome] += 1
        return outcome

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up: they are part of the experiment."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Proxy

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

    def handle_expect_100(self) -> bool:
        if self.server.faults.out:
            self.close_connection = True
            return False
        return super().handle_expect_100()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the history has every event that matters."""

    def _serve(self) -> None:
        body = self._read_body()
        outcome = self.server.draw()
        if outcome == "error":
            self._answer(503, {}, _SLOW_DOWN)
        elif outcome in ("silence", "out"):
            if outcome == "silence":
                self.server.closing.wait(self.server.silence_s)
            self.close_connection = True
        else:
            status, headers, answer = self._forward(body)
            if outcome == "ambiguous":
                self.close_connection = True
                return
            self._answer(status, headers, answer)

    def _read_body(self) -> bytes:
        size, rate = int(self.headers.get("Content-Length", 0)), self.server.faults.bytes_per_s
        if rate:
            self.server.closing.wait(size / rate)
        return self.rfile.read(size)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(LOOPBACK, self.server.target_port, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            upstream.request(self.command, self.path, body=body or None, headers=headers)
            reply = upstream.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP | {"date", "server"}:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
