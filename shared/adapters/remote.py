"""Read what a submit needs of an adapter at a remote source: its header, PEFT's config next to it, and its identity."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import BoundedSemaphore, Lock

from cachetools import LRUCache

from shared.adapters.header import read_open_header
from shared.adapters.header_json import Header
from shared.adapters.peft_folder import MAX_CONFIG_BYTES, decode_config
from shared.adapters.strength import CONFIG_NAME, PEFT_FILE
from shared.errors import AdapterCheckBusy, AdapterNotFound
from shared.sources.ranged_reader import check_deadline, open_remote
from shared.sources.remote_file import RemoteFile
from shared.sources.source import HttpsFile, HubFile, Source, sibling
from shared.sources.sources import Sources

# A source may take seconds to answer. The API has 40 threads, which answer polls too.
_MAX_CHECKS = 12
_MAX_WAITING = 12
_MAX_WAIT_S = 5.0
# Clients and balancers give up after 60 s or so, and then nobody learns of the job.
_MAX_CALL_S = 30.0
# The header of a LoRA for every layer of FLUX.2 [dev] takes 0.3 MB as Python objects, a hostile one 20 MB.
_CACHED_BYTES = 32 * 1024**2
_TENSOR_BYTES = 400


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


@dataclass(frozen=True)
class _Read:
    """What a pinned file and PEFT's config of the same pin say."""

    header: Header
    config: str | None

    @property
    def size_bytes(self) -> int:
        """The memory that this takes, roughly."""
        header = self.header
        texts = (*header.tensors, *header.metadata, *header.metadata.values(), self.config or "")
        return _TENSOR_BYTES * len(header.tensors) + sum(map(sys.getsizeof, texts))


def call_deadline() -> float:
    """Return the time on the monotonic clock until which one call may wait for all of its remote files."""
    return time.monotonic() + _MAX_CALL_S


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
        self._callers = BoundedSemaphore(_MAX_CHECKS + _MAX_WAITING)
        # Apart from that of local files: it is held while a host sends the header.
        self._large_header = Lock()
        self._lock = Lock()
        self._read: LRUCache[tuple[str, str], _Read] = LRUCache(_CACHED_BYTES, getsizeof=lambda read: read.size_bytes)

    def read(self, source: Source, *, sha256: str | None = None, deadline: float | None = None) -> RemoteAdapter:
        """Return what the header of a remote file says, after asking for the file's present identity.

        Args:
            sha256: the digest that the file must have; the worker that downloads it checks the bytes.
            deadline: time on the monotonic clock after which no further request is sent. Default: see `call_deadline`.

        Raises:
            AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable: see `Sources.open`.
            AdapterRefused: the file is not a sound safetensors file.
            SourceUnavailable: the deadline is over.
            AdapterCheckBusy: other remote files were checked for the last 5 s, or many wait for it.
        """
        deadline = call_deadline() if deadline is None else deadline
        with self._turn():
            check_deadline(str(source), deadline)
            file = self._sources.open(source, sha256=sha256)
            found = self._read_pinned(source, file, deadline)
            # The pin fixes a file next to it only if both are of one commit.
            config = found.config if isinstance(source, HubFile) else self._read_config(source, file)
        return RemoteAdapter(file.size_bytes, sha256 or file.sha256, str(file.pin), found.header, config)

    def _read_pinned(self, source: Source, file: RemoteFile, deadline: float) -> _Read:
        """Read what cannot change under the file's pin, unless that was read before."""
        key = str(source), str(file.pin)
        with self._lock:
            known = self._read.get(key)
        if known is not None:
            return known
        opened = open_remote(file, deadline=deadline)
        header = read_open_header(opened, max_bytes=self._max_bytes, large=self._large_header)
        read = _Read(header, self._read_config(source, file) if isinstance(source, HubFile) else None)
        # A sha256 that a request states for a link is a claim: the host may have sent another file's header.
        if not (isinstance(source, HttpsFile) and file.pin.kind == "sha256"):
            # One that is larger than the whole cache is not kept.
            with self._lock, suppress(ValueError):
                self._read[key] = read
        return read

    def _read_config(self, source: Source, file: RemoteFile) -> str | None:
        """Read PEFT's config from the folder of `adapter_model.safetensors`: it may decide the strength."""
        place = sibling(source, of=PEFT_FILE, name=CONFIG_NAME)
        if place is None:
            return None
        try:
            config = self._sources.open(place, pin=file.pin if isinstance(place, HubFile) else None)
        except AdapterNotFound:
            return None
        return decode_config(config.read(0, min(config.size_bytes, MAX_CONFIG_BYTES + 1)))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until fewer than `_MAX_CHECKS` remote files are being checked, unless many others wait."""
        if not self._callers.acquire(blocking=False):
            raise AdapterCheckBusy
        try:
            if not self._checks.acquire(timeout=_MAX_WAIT_S):
                raise AdapterCheckBusy
            try:
                yield
            finally:
                self._checks.release()
        finally:
            self._callers.release()
