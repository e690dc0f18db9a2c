"""Find the adapter files of an item on this host, download those of remote sources, and keep them while they are used.

The files of the item that is expected next stay too, until an item begins. If that is another item, they no longer take
room in the cache that it may need.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from shared.adapters.locate import locate_adapter
from shared.errors import AdapterRefused
from shared.job import AdapterRef, ItemSpec
from shared.metrics.definitions import ADAPTER_FETCHED_BYTES, ADAPTER_FILES
from shared.metrics.tally import PROCESS
from shared.settings import AdaptersSettings, Settings
from shared.sources.cache import FileCache
from shared.sources.remote_file import Pin
from shared.sources.source import parse_source
from shared.sources.sources import Sources

#: Called often while a file arrives; an error that it raises ends the download.
OnFetch = Callable[[], None]


@dataclass(frozen=True)
class ItemFiles:
    """The adapters of an item as files of this host.

    Attributes:
        spec: the item, with the sha256 that each file has; a remote one may have been accepted without it.
        paths: in the order of `spec.adapters`.
        fetch_s: seconds until all files were here; None if none of them came from a remote source.
    """

    spec: ItemSpec
    paths: tuple[Path, ...]
    fetch_s: float | None = None

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by stage, as in `ItemResult`; empty without remote files."""
        return {} if self.fetch_s is None else {"fetch": self.fetch_s}


class AdapterFiles:
    """Gives items their adapter files. One thread opens items, and another one prefetches the next item's.

    Args:
        cache: None refuses every remote source.
    """

    def __init__(self, settings: AdaptersSettings, cache: FileCache | None) -> None:
        self._settings = settings
        self._cache = cache
        # Guards the two below.
        self._lock = threading.Lock()
        self._opened_items = 0
        self._prefetched = _Prefetched((), ExitStack())

    @contextmanager
    def open(self, spec: ItemSpec, *, on_fetch: OnFetch) -> Iterator[ItemFiles]:
        """Give an item its files; none of them is removed from the cache inside the block.

        Raises:
            AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable, CacheUnavailable: a file cannot be had;
                see `locate_adapter` and `FileCache.fetch`.
        """
        with self._lock:
            self._opened_items += 1
            prefetched, self._prefetched = self._prefetched, _Prefetched((), ExitStack())
        with ExitStack() as used:
            used.callback(prefetched.files.close)
            if prefetched.adapters != spec.adapters:
                prefetched.files.close()
            yield self._find(spec, used, on_fetch)

    def prefetch(self, spec: ItemSpec, *, on_fetch: OnFetch) -> ItemFiles | None:
        """Give the files of the item that is expected next; return None if another item began in the meantime.

        The files stay in the cache until an item is opened, or another one is prefetched.

        Raises:
            AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable, CacheUnavailable: as in `open`.
        """
        with self._lock:
            turn = self._opened_items
        with ExitStack() as used:
            files = self._find(spec, used, on_fetch)
            with self._lock:
                if turn != self._opened_items:
                    return None
                self._prefetched.files.close()
                self._prefetched = _Prefetched(spec.adapters, used.pop_all())
        return files

    def _find(self, spec: ItemSpec, used: ExitStack, on_fetch: OnFetch) -> ItemFiles:
        started = time.perf_counter()
        found = [self._find_one(ref, used, on_fetch) for ref in spec.adapters]
        fetch_s = time.perf_counter() - started if any(ref.pin for ref in spec.adapters) else None
        adapters = tuple(ref for ref, _ in found)
        return ItemFiles(spec.model_copy(update={"adapters": adapters}), tuple(path for _, path in found), fetch_s)

    def _find_one(self, ref: AdapterRef, used: ExitStack, on_fetch: OnFetch) -> tuple[AdapterRef, Path]:
        if not ref.pin:
            settings = self._settings
            PROCESS.count(ADAPTER_FILES, "root")
            return ref, locate_adapter(ref.path, root=settings.root, allow_symlinks=settings.allow_symlinks)
        if self._cache is None:
            raise AdapterRefused(
                f"{ref.path} is not on this host, and FLUX2_SOURCES_LOCAL_ONLY allows this worker no other files; name "
                "a path under the adapter root"
            )
        # A host may be silent for long before its first byte.
        on_fetch()
        file = self._cache.fetch(
            ref.path,
            pin=ref.pin,
            size_bytes=ref.size_bytes,
            sha256=ref.sha256 or None,
            on_progress=lambda present, size: on_fetch(),
        )
        used.enter_context(file)
        PROCESS.count(ADAPTER_FILES, "source" if file.fetched_bytes else "cache")
        PROCESS.count(ADAPTER_FETCHED_BYTES, by=file.fetched_bytes)
        # The ledger knows the item's adapters by this key, which must stay the same for affinity.
        return _Fetched(**{**dict(ref), "sha256": file.sha256}, accepted_key=ref.update_key), file.path


class _Fetched(AdapterRef):
    """A reference with the digest of the file that was fetched for it.

    Attributes:
        accepted_key: the reference's `update_key` when the job was accepted, perhaps without a digest.
    """

    accepted_key: str = Field(exclude=True)

    @property
    def update_key(self) -> str:
        return self.accepted_key


class _Prefetched(NamedTuple):
    """The locks on files that were prefetched for some adapters."""

    adapters: tuple[AdapterRef, ...]
    files: ExitStack


def open_adapter_files(settings: Settings) -> AdapterFiles:
    """Return the adapter files of a worker with these settings."""
    if settings.sources.local_only:
        return AdapterFiles(settings.adapters, cache=None)
    sources = Sources(settings)
    cache = FileCache(
        settings.sources.cache_dir,
        max_bytes=settings.sources.cache_max_bytes,
        # What a link may hold was decided when the job was accepted, perhaps by an API of another version.
        open_file=lambda source, pin: sources.open(parse_source(source, may_hold_secret=True), pin=Pin.parse(pin)),
        retry_budget_s=settings.sources.retry_budget_s,
        download_s=settings.sources.download_s,
    )
    return AdapterFiles(settings.adapters, cache)
