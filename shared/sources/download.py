"""Download one file into the cache's folder, continue one that broke off, and verify the whole.

The bytes of a broken download stay on the disk under its pin, so that the next attempt, in whichever process, asks the
source only for the rest.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from shared.errors import SourceChanged, SourceUnavailable
from shared.sources.cache_folder import CacheFolder
from shared.sources.locked_file import LockedFile
from shared.sources.pin_index import source_key
from shared.sources.remote_file import MAX_CHUNK, RemoteFile

logger = logging.getLogger("flux2.sources")

#: Called with the bytes that are there and the size, often; an error that it raises ends the fetch.
OnProgress = Callable[[int, int], None]

# Each wait is random, below a bound that doubles, so that workers do not retry in step.
_FIRST_WAIT_S = 0.4
_LONGEST_WAIT_S = 8.0
# Shorter than any limit on missing progress.
_NAP_S = 1.0

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class WantedFile:
    """The file that a job names.

    Attributes:
        source: canonical text of the source.
        sha256: None if no one has stated it.
    """

    source: str
    pin: str
    size_bytes: int
    sha256: str | None

    @property
    def key(self) -> str:
        """Name of the file's download: the same for all sources that state the same digest."""
        return self.sha256 or source_key(self.source, self.pin)

    @property
    def partial_name(self) -> str:
        """Name of the file's received beginning, which is continued under the same pin only."""
        origin = source_key(self.source, self.pin)[:16]
        # Without a digest, nothing shows that a host which lost power also lost the end of what it had written.
        return f"{self.key}-{origin}" if self.sha256 else f"{self.key}-{origin}-{_boot_id()}"


class Download:
    """One download; `run` leaves the verified file in `partial`.

    Args:
        partial: the beginning of the file, locked by the caller.
        known_sha256: the digest that the file must have, stated or recorded under its pin.
        open_file: opens the source; called again for each attempt.
        retry_budget_s: seconds without a new byte for which the source is tried again.
        download_s: seconds for all attempts together; a host that sends a byte now and then must not hold a worker.
    """

    def __init__(
        self,
        wanted: WantedFile,
        partial: LockedFile,
        *,
        known_sha256: str | None,
        folder: CacheFolder,
        open_file: Callable[[], RemoteFile],
        on_progress: OnProgress,
        retry_budget_s: float,
        download_s: float,
    ) -> None:
        self._wanted = wanted
        self._file = partial.file
        self._known_sha256 = known_sha256
        self._folder = folder
        self._open_file = open_file
        self._on_progress = on_progress
        self._retry_budget_s = retry_budget_s
        self._digest = hashlib.sha256()
        self._size = 0
        self._received_at = time.monotonic()
        self._ends_at = self._received_at + download_s
        self.received_bytes = 0

    def run(self) -> str:
        """Receive what is missing, verify the whole, and return its sha256.

        Raises:
            SourceChanged: the source has, or sends, another file.
            SourceUnavailable: the source sent nothing new for the retry budget.
            CacheUnavailable: the disk is full.
            RequestError: the source refuses the file.
        """
        self._read_present()
        continued = self._size > 0
        expected = self._receive_all()
        if continued and expected not in (None, self._digest.hexdigest()):
            logger.warning("continued download discarded: its bytes are not the file's", extra=self._extra())
            self._start_over()
            expected = self._receive_all()
        digest = self._digest.hexdigest()
        if expected not in (None, digest):
            self._start_over()
            raise SourceChanged(
                f"{self._wanted.source} sent a file with sha256 {digest[:12]}…, and {str(expected)[:12]}… was "
                "accepted; submit again to use the present file"
            )
        with self._folder.naming_failures():
            os.fsync(self._file.fileno())
        return digest

    def _read_present(self) -> None:
        """Hash the bytes of an earlier attempt."""
        with self._folder.naming_failures():
            self._file.seek(0)
            while chunk := self._file.read(MAX_CHUNK):
                self._count(chunk)
        if self._size > self._wanted.size_bytes:
            self._start_over()

    def _receive_all(self) -> str | None:
        """Receive the rest, in several attempts if needed; return the digest that the file must have, if known."""
        retrying = Retrying(
            retry=retry_if_exception_type(SourceUnavailable),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            stop=self._is_over,
            sleep=self._pause,
            before_sleep=self._log_retry,
            reraise=True,
        )
        self._received_at = time.monotonic()
        return retrying(self._receive)

    def _receive(self) -> str | None:
        if self._size == self._wanted.size_bytes and self._known_sha256:
            return self._known_sha256  # complete, but its process ended before it was verified
        remote = self._open_file()
        self._check(remote)
        with ExitStack() as opened:
            chunks = remote.stream(self._size) if self._size < remote.size_bytes else ()
            # A canceled download ends its connection now, not when the generator is collected.
            if isinstance(chunks, Generator):
                opened.enter_context(closing(chunks))
            for chunk in chunks:
                self._write(chunk, limit=remote.size_bytes)
        if self._size < remote.size_bytes:
            raise SourceUnavailable(
                f"{self._wanted.source} ended after {self._size} of {remote.size_bytes} bytes; try again later"
            )
        return self._known_sha256 or remote.sha256

    def _check(self, remote: RemoteFile) -> None:
        """Refuse a file that is not the accepted one, before any byte of it is received."""
        wanted = self._wanted
        facts = (str(remote.pin), remote.size_bytes, remote.sha256 or wanted.sha256)
        if facts != (wanted.pin, wanted.size_bytes, wanted.sha256 or remote.sha256):
            raise SourceChanged(
                f"{wanted.source} has changed since the job was accepted; submit again to use the present file"
            )

    def _write(self, chunk: bytes, *, limit: int) -> None:
        if time.monotonic() > self._ends_at:
            raise SourceUnavailable(
                f"{self._wanted.source} is sent too slowly: {self._size} of {limit} bytes are here; what is missing is "
                "fetched by the next attempt, or raise FLUX2_SOURCES_DOWNLOAD_S"
            )
        if self._size + len(chunk) > limit:
            self._start_over()
            raise SourceChanged(f"{self._wanted.source} sends more than the {limit} bytes that it stated; submit again")
        with self._folder.naming_failures():
            left = memoryview(chunk)
            while left:
                left = left[self._file.write(left) :]
        self._received_at = time.monotonic()
        self.received_bytes += len(chunk)
        self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._size += len(chunk)
        self._on_progress(self._size, self._wanted.size_bytes)

    def _start_over(self) -> None:
        with self._folder.naming_failures():
            self._file.truncate(0)
            self._file.seek(0)
        self._digest = hashlib.sha256()
        self._size = 0

    def _is_over(self, state: RetryCallState) -> bool:
        return time.monotonic() + state.upcoming_sleep > min(self._received_at + self._retry_budget_s, self._ends_at)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._on_progress(self._size, self._wanted.size_bytes)
            time.sleep(min(left, _NAP_S))

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.info("download is tried again", extra={**self._extra(), "error": str(error)})

    def _extra(self) -> dict[str, object]:
        return {"file": self._wanted.source, "received_bytes": self._size, "size_bytes": self._wanted.size_bytes}


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip().replace("-", "")[:16]
    except OSError:
        # A name that no later process has: it starts from the beginning.
        return uuid.uuid4().hex[:16]
