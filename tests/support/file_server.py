"""A web server on this host that serves files and ranges of them, with a strong ETag for their present bytes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """A server whose files a test sets.

    Attributes:
        files: bytes by path, such as `/a.safetensors`.
        downloads: path of each answer that went to the end of a file.
        authorizations: values of `Authorization` that arrived.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.downloads: list[str] = []
        self.authorizations: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=[0.02])

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        if token := self.headers["Authorization"]:
            self.server.authorizations.append(token)
        data = self.server.files.get(self.path)
        if data is None:
            return self.answer(404)
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        if self.headers["If-Match"] not in (None, etag):
            return self.answer(412)
        if self.headers["Range"] is None:
            self.server.downloads.append(self.path)
            return self.answer(200, data, {"ETag": etag})
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()  # type: ignore[union-attr]
        if not last:
            self.server.downloads.append(self.path)
        part = data[int(first) : int(last) + 1 if last else len(data)]
        extent = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return self.answer(206, part, {"Content-Range": extent, "ETag": etag})

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
