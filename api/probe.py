"""Check the object store for `/ready`, at a rate that does not depend on the number of load balancers."""

from __future__ import annotations

import threading
import time

from shared.errors import StorageUnavailable
from shared.storage import ObjectStore


class StorageProbe:
    """Remembers whether the object store works, for `max_age_s`; at most one check runs at a time.

    Each check has its own thread: a check of a store that hangs ends with its last timeout, minutes later, and no
    caller waits longer than `hang_s`.
    """

    def __init__(self, store: ObjectStore, *, max_age_s: float = 1.0, hang_s: float = 5.0) -> None:
        self._store = store
        # Each check writes an object, and every load balancer probes. A fault must show within a second.
        self._max_age_s = max_age_s
        self._hang_s = hang_s
        self._lock = threading.Lock()
        self._state: str | None = None
        self._checked_at = 0.0
        # Of the check that runs.
        self._began_at = 0.0
        self._ended: threading.Event | None = None

    def state(self) -> str:
        """Return `ok` or a description of the fault; during another caller's check, the result of the previous one."""
        with self._lock:
            now = time.monotonic()
            if self._ended is None:
                if self._state is not None and now - self._checked_at <= self._max_age_s:
                    return self._state
                self._began_at, self._ended = now, threading.Event()
                threading.Thread(
                    target=self._check, args=(self._ended,), name="flux2-storage-probe", daemon=True
                ).start()
            elif self._state is not None and now - self._began_at < self._hang_s:
                # Only the caller who began the check waits for it, unless nothing is known yet.
                return self._state
            ended, left_s = self._ended, self._began_at + self._hang_s - now
        ended.wait(max(0.0, left_s))
        with self._lock:
            if self._ended is not ended and self._state is not None:
                return self._state
            return f"no answer for {time.monotonic() - self._began_at:.0f} s"

    def _check(self, ended: threading.Event) -> None:
        state = "the check of the store broke; see the log of the API"
        try:
            self._store.check()
            state = "ok"
        except StorageUnavailable as error:
            state = str(error)
        finally:
            with self._lock:
                self._state, self._checked_at, self._ended = state, time.monotonic(), None
            ended.set()
