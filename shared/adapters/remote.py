"""Read what a submit needs of an adapter at a remote source: its header, PEFT's config next to it, and its identity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import BoundedSemaphore, Lock

from cachetools import LRUCache

from shared.adapters.header import read_open_header
from shared.adapters.header_json import Header
from shared.adapters.peft_folder import MAX_CONFIG_BYTES, decode_config
from shared.adapters.strength import CONFIG_NAME, PEFT_FILE
from shared.errors import AdapterCheckBusy, AdapterNotFound
from shared.sources.ranged_reader import open_remote
from shared.sources.remote_file import RemoteFile
from shared.sources.source import HubFile, Source, sibling
from shared.sources.sources import Sources

# A source may take seconds to answer. The API has 40 threads, which answer polls too.
_MAX_CHECKS = 12
_MAX_WAIT_S = 5.0
# A header takes a few hundred kB as Python objects.
_CACHED_HEADERS = 64


@dataclass(frozen=True)
class RemoteAdapter:
    """A remote adapter file whose bytes are fixed.

    Attributes:
        sha256: None if neither the source nor the caller states it.
        pin: text of the `Pin` under which the file has these bytes.
        config: text of PEFT's config next to the file, or None.
    """

    size_bytes: int
    sha256: str | None
    pin: str
    header: Header
    config: str | None


class RemoteAdapters:
    """Reads headers of remote adapters, of a few at a time; threads share one."""

    def __init__(self, sources: Sources, *, max_bytes: int) -> None:
        """Make the reader.

        Args:
            max_bytes: size above which a file is refused.
        """
        self._sources = sources
        self._max_bytes = max_bytes
        self._checks = BoundedSemaphore(_MAX_CHECKS)
        self._lock = Lock()
        # The bytes under a pin never change, so neither does what they say.
        self._read: LRUCache[tuple[str, str], RemoteAdapter] = LRUCache(_CACHED_HEADERS)

    def read(self, source: Source, *, sha256: str | None = None) -> RemoteAdapter:
        """Return what the header of a remote file says, after asking for the file's present identity.

        Args:
            sha256: the digest that the file must have; the worker that downloads it checks the bytes.

        Raises:
            AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable: see `Sources.open`.
            AdapterRefused: the file is not a sound safetensors file.
            AdapterCheckBusy: other remote files were checked for the last 5 s.
        """
        with self._turn():
            file = self._sources.open(source, sha256=sha256)
            key = str(source), str(file.pin)
            with self._lock:
                known = self._read.get(key)
            if known is None:
                known = self._read_header(source, file)
                with self._lock:
                    self._read[key] = known
        return replace(known, sha256=sha256 or file.sha256)

    def _read_header(self, source: Source, file: RemoteFile) -> RemoteAdapter:
        header = read_open_header(open_remote(file), max_bytes=self._max_bytes)
        return RemoteAdapter(file.size_bytes, file.sha256, str(file.pin), header, self._read_config(source, file))

    def _read_config(self, source: Source, file: RemoteFile) -> str | None:
        """Read PEFT's config from the folder of `adapter_model.safetensors`: it may decide the strength."""
        place = sibling(source, of=PEFT_FILE, name=CONFIG_NAME)
        if place is None:
            return None
        # Of the same commit; other sources have no common version of two files.
        pin = file.pin if isinstance(place, HubFile) else None
        try:
            config = self._sources.open(place, pin=pin)
        except AdapterNotFound:
            return None
        return decode_config(config.read(0, min(config.size_bytes, MAX_CONFIG_BYTES + 1)))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until fewer than `_MAX_CHECKS` remote files are being checked."""
        if not self._checks.acquire(timeout=_MAX_WAIT_S):
            raise AdapterCheckBusy
        try:
            yield
        finally:
            self._checks.release()
