"""Keep copies of remote files on this host's disk, by their sha256, for all of its worker processes.

A file is downloaded once per host, however many processes and threads ask for it. Nobody sees it before it is complete
and verified, and it stays until it is the least recently used one and the cache's limit is reached. The cache survives
restarts, and heals itself: a damaged file is detected at its next use and fetched again.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from shared.errors import AdapterRefused, CacheUnavailable, SourceUnavailable
from shared.sources.cache_folder import CacheFolder
from shared.sources.cached_file import CachedFile, CompleteFiles
from shared.sources.download import Download, OnProgress, WantedFile
from shared.sources.locked_file import LockedFile, try_lock
from shared.sources.pin_index import PinIndex, PinRecord
from shared.sources.remote_file import RemoteFile
from shared.sources.room import Room

logger = logging.getLogger("flux2.sources")

_POLL_S = 0.1
# A look for room reads the whole folder, and one process does so at a time.
_ROOM_POLL_S = 0.5
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A process that downloads may also hash what it has, at about 1 GB/s, before the file grows again.
_SILENT_S = 60.0


def ignore_progress(_present: int, _size: int) -> None:
    """Do nothing: the caller has no lease to keep alive."""


class FileCache:
    """The file cache of one host; processes and threads share the folder.

    Args:
        max_bytes: total size of the files, and of those on their way into the cache.
        open_file: opens a source by its canonical text under a pin.
        retry_budget_s: seconds without a new byte for which a source is tried again.
        download_s: seconds that one download may take.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        open_file: Callable[[str, str], RemoteFile],
        retry_budget_s: float = 60.0,
        download_s: float = 3600.0,
    ) -> None:
        self.folder = CacheFolder(folder)
        self._max_bytes = max_bytes
        self._open_file = open_file
        self._retry_budget_s = retry_budget_s
        self._download_s = download_s
        self._files = CompleteFiles(self.folder)
        self._pins = PinIndex(self.folder)
        self._room = Room(self.folder, max_bytes=max_bytes)

    def fetch(
        self,
        source: str,
        *,
        pin: str,
        size_bytes: int,
        sha256: str | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> CachedFile:
        """Return a file from the cache, after downloading what is missing of it.

        Args:
            source: canonical text of the source.
            sha256: None if the source states none; the first download under the pin then determines it.
            on_progress: called at least each second or so while bytes arrive, and while this call waits for another
                process; an error that it raises ends the fetch, and what was received stays for the next one.

        Raises:
            SourceChanged: the source no longer has the file of the pin.
            SourceUnavailable: the source does not answer; another attempt may succeed.
            CacheUnavailable: the disk is full, or files in use leave no room; another host may succeed.
            AdapterRefused: the file is larger than the whole cache, or the source refuses it.
            AdapterNotFound: the source has no such file.
        """
        if sha256 is not None and not _SHA256.fullmatch(sha256):
            raise AdapterRefused(
                f"{source}: {sha256[:80]!r} is not a sha256; write 64 hexadecimal digits in lower case"
            )
        self.folder.prepare()
        wanted = WantedFile(source, pin, size_bytes, sha256)
        if (cached := self._find(wanted)) is not None:
            return cached
        if size_bytes > self._max_bytes:
            raise AdapterRefused(
                f"{source} has {size_bytes} bytes, and this worker's cache holds {self._max_bytes}; use a smaller "
                "file, or ask the operator to raise FLUX2_SOURCES_CACHE_MAX_BYTES"
            )
        while True:
            with self._lock_key(wanted, on_progress) as lock:
                try:
                    # Another process may have downloaded it during the wait.
                    cached = self._find(wanted) or self._download(wanted, lock, on_progress)
                finally:
                    lock.remove()
            if cached is not None:
                return cached

    def _find(self, wanted: WantedFile) -> CachedFile | None:
        known = self._known_sha256(wanted)
        return None if known is None else self._files.find(known, size_bytes=wanted.size_bytes)

    def _known_sha256(self, wanted: WantedFile) -> str | None:
        """Return the digest that was stated, or that an earlier download under the pin had."""
        record = None if wanted.sha256 else self._pins.find(wanted.source, wanted.pin)
        return record.sha256 if record else wanted.sha256

    def _lock_key(self, wanted: WantedFile, on_progress: OnProgress) -> LockedFile:
        """Wait until no other process downloads the file."""
        place = self.folder.locks / wanted.key
        size, grown_at = -1, time.monotonic()
        while True:
            with self.folder.naming_failures():
                if (lock := try_lock(place, create=True)) is not None:
                    return lock
            present = self._present(wanted)
            if present != size:
                size, grown_at = present, time.monotonic()
            # A frozen process keeps its lock.
            if time.monotonic() - grown_at > self._retry_budget_s + _SILENT_S:
                raise SourceUnavailable(
                    f"another process of this host downloads {wanted.source}, and has received nothing for "
                    f"{time.monotonic() - grown_at:.0f} s; try again later"
                )
            on_progress(present, wanted.size_bytes)
            time.sleep(_POLL_S)

    def _present(self, wanted: WantedFile) -> int:
        """Return the bytes of the file that have arrived so far, from whichever source."""
        # Not of all files: with 2,000 of them, each slot that waits would spend 70 ms of each 100 ms.
        return sum(entry.size_bytes for entry in self.folder.partial_entries() if entry.key == wanted.key)

    def _download(self, wanted: WantedFile, lock: LockedFile, on_progress: OnProgress) -> CachedFile | None:
        """Download the file; return None if it was removed again before this call could lock it."""
        started = time.monotonic()
        self._wait_for_room(wanted, lock, on_progress)
        with ExitStack() as opened:
            partial = opened.enter_context(self._open_partial(wanted))
            download = Download(
                wanted,
                partial,
                known_sha256=self._known_sha256(wanted),
                folder=self.folder,
                open_file=lambda: self._open_file(wanted.source, wanted.pin),
                on_progress=on_progress,
                retry_budget_s=self._retry_budget_s,
                download_s=self._download_s,
            )
            try:
                digest = download.run()
            except CacheUnavailable:
                # Its bytes would keep the disk full.
                partial.remove()
                raise
            # First the record: if the process is killed now, the next fetch publishes the same bytes.
            self._pins.add(PinRecord(wanted.source, wanted.pin, digest, wanted.size_bytes))
            cached = self._files.publish(partial, digest, fetched_bytes=download.received_bytes)
            if cached is None:
                return None
            # The result has the lock from here on.
            opened.pop_all()
        about = {"file": wanted.source, "sha256": digest, "size_bytes": wanted.size_bytes}
        seconds = round(time.monotonic() - started, 3)
        logger.info("file fetched", extra={**about, "fetched_bytes": cached.fetched_bytes, "seconds": seconds})
        return cached

    def _wait_for_room(self, wanted: WantedFile, lock: LockedFile, on_progress: OnProgress) -> None:
        until = time.monotonic() + self._retry_budget_s
        while (reason := self._room.reserve(lock, size_bytes=wanted.size_bytes)) is not None:
            if time.monotonic() > until:
                raise CacheUnavailable(
                    f"no room in the cache for the {wanted.size_bytes} bytes of {wanted.source}: {reason}"
                )
            on_progress(self._present(wanted), wanted.size_bytes)
            time.sleep(_ROOM_POLL_S)

    def _open_partial(self, wanted: WantedFile) -> LockedFile:
        with self.folder.naming_failures():
            # Only a process that looks for unused files can have it locked, for a moment.
            while (partial := try_lock(self.folder.partials / wanted.partial_name, create=True)) is None:
                time.sleep(_POLL_S)
        return partial
