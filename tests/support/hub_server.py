"""A Hugging Face hub on this host: repositories with commits on one port, and the bytes of their files on another."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

FIRST = "1" * 40
SECOND = "2" * 40
_PATH = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class HubServer:
    """A hub whose repositories a test fills; it counts what it is asked for.

    Attributes:
        commits: files by (repository, commit); the branches are in `branches`.
        branches: commit by (repository, name of a branch).
        token: what private repositories ask for.
        signature: what the addresses at the store are signed with.
        private: names of private repositories.
        heads: number of questions about a file.
        bytes_sent: bytes of files by their digest.
        tokens_at_store: values of `Authorization` that arrived at the store: there must be none.
        broken_after: number of bytes after which the next answer of the store breaks off.
        downloads: first byte of each answer that went to the end of a file, by the file's digest.
    """

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.token = "hf_secret"
        self.signature = "secret"
        self.heads = 0
        self.bytes_sent: Counter[str] = Counter()
        self.store_requests = 0
        self.tokens_at_store: list[str] = []
        self.broken_after: int | None = None
        self._holding: tuple[int, threading.Event] | None = None
        self.downloads: defaultdict[str, list[int]] = defaultdict(list)
        self._servers = [_Server(self, _HubHandler), _Server(self, _StoreHandler)]
        self._threads = [threading.Thread(target=server.serve_forever, args=[0.02]) for server in self._servers]

    @property
    def url(self) -> str:
        """What `HF_ENDPOINT` should be."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def store_place(self) -> str:
        """The host and port to which the hub redirects."""
        return f"127.0.0.1:{self._servers[1].server_port}"

    def push(self, repository: str, files: Mapping[str, bytes], *, commit: str = FIRST, branch: str = "main") -> None:
        """Make a commit of these files the head of a branch."""
        self.commits[repository, commit] = dict(files)
        self.branches[repository, branch] = commit

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def hold_next_download(self, *, after_bytes: int) -> threading.Event:
        """Make the next download wait after so many bytes until the returned event is set."""
        release = threading.Event()
        self._holding = after_bytes, release
        return release

    def pass_hold(self) -> tuple[int, threading.Event] | None:
        """Return what the next download waits for, once."""
        holding, self._holding = self._holding, None
        return holding

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def answer(self, status: int, body: bytes = b"", **headers: Any) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _HubHandler(_Handler):
    def do_HEAD(self) -> None:
        self.server.hub.heads += 1
        self.answer_file()

    def do_GET(self) -> None:
        self.answer_file()

    def answer_file(self) -> None:
        hub = self.server.hub
        match = _PATH.fullmatch(urlsplit(self.path).path)
        if match is None:
            return self.answer(404)
        repository, revision, path = (unquote(part) for part in match.groups())
        known = {name for name, _ in hub.commits}
        may_see = repository not in hub.private or self.headers["Authorization"] == f"Bearer {hub.token}"
        if repository not in known or not may_see:
            return self.answer(401, X_Error_Code="RepoNotFound")
        if repository in hub.gated:
            return self.answer(403, X_Error_Code="GatedRepo")
        commit = hub.branches.get((repository, revision), revision)
        if (repository, commit) not in hub.commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        data = hub.commits[repository, commit].get(path)
        if data is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        digest = hashlib.sha256(data).hexdigest()
        return self.answer(
            302,
            Location=f"http://{hub.store_place}/{repository}/{commit}/{digest}?signature={hub.signature}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=len(data),
        )


class _StoreHandler(_Handler):
    def do_GET(self) -> None:
        hub = self.server.hub
        hub.store_requests += 1
        if token := self.headers["Authorization"]:
            hub.tokens_at_store.append(token)
        digest = urlsplit(self.path).path.rpartition("/")[2]
        data = next(data for data in self.files() if hashlib.sha256(data).hexdigest() == digest)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()  # type: ignore[union-attr]
        part = data[int(first) : int(last) + 1 if last else len(data)]
        extent = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        if not last:
            hub.downloads[digest].append(int(first))
        if hub.broken_after is not None:
            sent, hub.broken_after = part[: hub.broken_after], None
        else:
            sent = part
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", extent)
        self.end_headers()
        with contextlib.suppress(OSError):
            if not last and (holding := hub.pass_hold()):
                size, release = holding
                self.send_part(digest, sent[:size])
                release.wait()
                sent = sent[size:]
            self.send_part(digest, sent)
        self.close_connection = True

    def send_part(self, digest: str, data: bytes) -> None:
        # Before they are sent: whoever has received them finds them counted.
        self.server.hub.bytes_sent[digest] += len(data)
        self.wfile.write(data)

    def files(self) -> Iterator[bytes]:
        for files in self.server.hub.commits.values():
            yield from files.values()
