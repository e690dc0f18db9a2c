"""Plant secrets that can be recognised, and search everything that the service leaves behind for them."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

Place = tuple[str, bytes]


@dataclass
class Canaries:
    """Secrets by name, and a search for them.

    Attributes:
        allowed: for a name, a function that says whether the secret may be in a place.
    """

    secrets: dict[str, str] = field(default_factory=dict)
    allowed: dict[str, Callable[[str], bool]] = field(default_factory=dict)

    def plant(self, name: str, text: str, *, allowed: Callable[[str], bool] = lambda place: False) -> str:
        """Remember a secret and return it."""
        assert len(text) >= 16, f"{name} is too short to be recognised"
        self.secrets[name] = text
        self.allowed[name] = allowed
        return text

    def search(self, places: Iterable[Place]) -> list[str]:
        """Return `NAME in PLACE` for each secret in each place, in any common encoding."""
        forms = {name: list(_forms(text)) for name, text in self.secrets.items()}
        return [
            f"{name} in {place}"
            for place, data in places
            for name, texts in forms.items()
            if any(text in data for text in texts) and not self.allowed[name](place)
        ]


def _forms(text: str) -> Iterator[bytes]:
    """Write a secret as plain text, in URLs, in EXIF's UTF-16, in hexadecimal, and in base64 behind any other bytes."""
    data = text.encode()
    yield from {data, quote(text, safe="").encode(), text.encode("utf-16-be"), text.encode("utf-16-le")}
    yield data.hex().encode()
    for skipped in range(3):
        # Of what comes before and behind, base64 mixes bits into the first and the last letters.
        whole = base64.b64encode(b"\0" * skipped + data)
        yield whole[-(-skipped * 8 // 6) : len(whole) - 4]


def redis_places(client: Any) -> Iterator[Place]:
    """Yield every key of a Redis with its value, whatever its type; `client` must return bytes."""
    readers = {
        b"string": lambda key: [client.get(key)],
        b"hash": lambda key: [part for pair in client.hgetall(key).items() for part in pair],
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": lambda key: [repr(client.xrange(key)).encode()],
        # It has expired since it was listed.
        b"none": lambda key: [],
    }
    for key in client.scan_iter(count=1000):
        value = readers[client.type(key)](key)
        yield f"redis key {key.decode(errors='replace')}", b"\n".join([key, *(part for part in value if part)])


def file_places(folder: Path, pattern: str = "*") -> Iterator[Place]:
    """Yield every file below a folder whose name has a pattern."""
    for file in sorted(folder.rglob(pattern)):
        if file.is_file():
            yield f"file {file.relative_to(folder)}", file.read_bytes()


def log_places(data: Path) -> Iterator[Place]:
    """Yield the log of every process of a stack."""
    found = list(file_places(data, "server.log"))
    assert len(found) >= 4, "Redis, S3, the API and a worker have logs"
    yield from found


def process_places() -> Iterator[Place]:
    """Yield the arguments of every process of this host."""
    for process in Path("/proc").iterdir():
        # This process' own arguments name the tests.
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                yield f"arguments of process {process.name}", (process / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue


def bucket_places(client: Any, bucket: str) -> Iterator[Place]:
    """Yield every object of a bucket: its name, its metadata and its bytes."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            found = client.get_object(Bucket=bucket, Key=entry["Key"])
            about = f"{entry['Key']} {found['Metadata']} {found['ContentType']}"
            yield f"object {entry['Key']}", about.encode() + b"\n" + found["Body"].read()
