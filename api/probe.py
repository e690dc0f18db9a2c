"""The object store's health, asked for rarely: probes come from every load balancer, and each would write an object."""

from __future__ import annotations

import threading
import time

from shared.errors import StorageUnavailable
from shared.storage import ObjectStore


class StorageProbe:
    """The object store's state, asked for at most once in `max_age_s`, by one caller at a time."""

    def __init__(self, store: ObjectStore, *, max_age_s: float = 5.0) -> None:
        self._store = store
        self._max_age_s = max_age_s
        self._lock = threading.Lock()
        self._answer = ""
        self._asked_at: float | None = None

    def state(self) -> str:
        """`ok`, or what is wrong. Who asks while another one waits for the store gets the last answer."""
        if self._lock.acquire(blocking=self._asked_at is None):
            try:
                if self._asked_at is None or time.monotonic() - self._asked_at > self._max_age_s:
                    self._answer = self._ask()
                    self._asked_at = time.monotonic()
            finally:
                self._lock.release()
        return self._answer

    def _ask(self) -> str:
        try:
            self._store.check()
        except StorageUnavailable as error:
            return str(error)
        return "ok"
