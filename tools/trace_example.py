"""Print the trace of one request, as in docs/operations.md: `python -m tools.trace_example`.

A service with one simulated slot runs on this host, whose processes write their spans as lines of JSON.
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import typer

from tools.simulated_service import simulated_service, submit

_ADAPTER = "styles/neon_city.safetensors"
_STEP_S = 0.05
# The span that ends last.
_LAST = "webhook"
_WAIT_S, _POLL_S = 60.0, 0.1
_NAME_WIDTH = 24
_SETTINGS = {
    "FLUX2_TRACE_EXPORTER": "console",
    # Any secret: nobody checks the signature.
    "FLUX2_WEBHOOK_SECRET": "whsec_" + base64.b64encode(bytes(32)).decode(),
    "FLUX2_WEBHOOK_ALLOW_PRIVATE": "true",
}

Span = dict[str, Any]


def main() -> None:
    """Render an image, and print its trace as a tree: when each span began, how long it took, and where."""
    with tempfile.NamedTemporaryFile() as log, _receiver() as hook:
        with simulated_service(
            slots=1, step_s=_STEP_S, adapters={_ADAPTER: "neon"}, settings=_SETTINGS, log=log.file
        ) as url:
            prompts = [{"prompt": "a city at night"}]
            submit(url, tenant="studio", lora=_ADAPTER, prompts=prompts, webhook_url=hook)
            _wait_for_end(Path(log.name))
        spans = _read(Path(log.name))
    [root] = [span for span in spans if span["name"].startswith("POST")]
    typer.echo(f"{'ms':<{_NAME_WIDTH}}{'begin':>8}{'took':>8}")
    for depth, span in _walk(root, spans):
        begin_ms = 1000 * (_time(span["start_time"]) - _time(root["start_time"]))
        took_ms = 1000 * (_time(span["end_time"]) - _time(span["start_time"]))
        name, service = "  " * depth + span["name"], span["resource"]["attributes"]["service.name"]
        typer.echo(f"{name:{_NAME_WIDTH}}{begin_ms:8.1f}{took_ms:8.1f}  {service}")


@contextmanager
def _receiver() -> Iterator[str]:
    """Answer webhooks inside the block; the value is the address for them."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing: the trace says what was answered."""


def _wait_for_end(log: Path) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not any(span["name"] == _LAST for span in _read(log)):
        if time.monotonic() > deadline_s:
            raise SystemExit(f"no webhook was sent:\n{log.read_text()}")
        time.sleep(_POLL_S)


def _read(log: Path) -> list[Span]:
    """Return the spans among the lines of a log."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"name"')]


def _walk(span: Span, spans: Sequence[Span], depth: int = 0) -> Iterator[tuple[int, Span]]:
    """Yield a span and those below it in the order of their beginnings, with their depths."""
    yield depth, span
    below = [other for other in spans if other["parent_id"] == span["context"]["span_id"]]
    for other in sorted(below, key=lambda other: str(other["start_time"])):
        yield from _walk(other, spans, depth + 1)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    typer.run(main)
