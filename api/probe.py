"""Check the object store for `/ready`, at a rate that does not depend on the number of load balancers."""

from __future__ import annotations

import threading
import time

from shared.errors import StorageUnavailable
from shared.storage import ObjectStore


class StorageProbe:
    """Remembers whether the object store works, for `max_age_s`; at most one caller checks at a time."""

    def __init__(self, store: ObjectStore, *, max_age_s: float = 1.0, hang_s: float = 5.0) -> None:
        self._store = store
        # Each check writes an object, and every load balancer probes. A fault must show within a second.
        self._max_age_s = max_age_s
        # A check of a store that hangs ends with its last timeout, minutes later.
        self._hang_s = hang_s
        self._lock = threading.Lock()
        self._state = ""
        self._began_at = 0.0
        self._checked_at: float | None = None

    def state(self) -> str:
        """Return `ok` or a description of the fault; during a running check, the result of the previous one."""
        # Only the first check is waited for: a store that hangs must not block every probe.
        if self._lock.acquire(blocking=self._checked_at is None):
            try:
                if self._checked_at is None or time.monotonic() - self._checked_at > self._max_age_s:
                    self._began_at = time.monotonic()
                    self._state = self._check_store()
                    self._checked_at = time.monotonic()
            finally:
                self._lock.release()
            return self._state
        running_s = time.monotonic() - self._began_at
        return f"no answer for {running_s:.0f} s" if running_s > self._hang_s else self._state

    def _check_store(self) -> str:
        try:
            self._store.check()
        except StorageUnavailable as error:
            return str(error)
        return "ok"
