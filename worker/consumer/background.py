"""Run two threads while an item renders: one stores the previous image, one prepares the next item."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from shared.log_context import in_this_context

logger = logging.getLogger("flux2.worker.consumer")

# Weights are still being merged during the first step; preparing at the same time would slow both down.
STEP_TO_PREPARE = 2


class InlineRunner:
    """Runs work in the calling thread; for tests, and for a worker without a storing thread."""

    def submit(self, work: Callable[[], None]) -> None:
        """Run the work to its end."""
        work()

    def wait(self) -> None:
        """Return immediately: no work outlives `submit`."""


class _SingleThread:
    """Runs one piece of work at a time in a named thread, which `wait` joins."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wait(self) -> None:
        """Block until the current work has ended; return immediately if there is none."""
        with self._lock:
            thread = self._thread
        # Outside the lock, so that other callers are not blocked while this one joins the thread.
        if thread is not None:
            thread.join()

    def _start_if_idle(self, work: Callable[[], None]) -> bool:
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return False
            thread = threading.Thread(target=in_this_context(self._run), args=[work], name=self._name, daemon=True)
            # Assigned only after the start: a thread that could not start must not be joined.
            thread.start()
            self._thread = thread
            return True

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - an exception that leaves a thread is lost
            self._log_failure(error)

    def _log_failure(self, error: Exception) -> None:
        raise NotImplementedError


class BackgroundUploader(_SingleThread):
    """Stores one image at a time in a thread; the next image waits until the previous one is stored."""

    def __init__(self) -> None:
        super().__init__("flux2-uploader")

    def submit(self, work: Callable[[], None]) -> None:
        """Wait for the previous work, then start this one.

        Raises:
            RuntimeError: no thread could be started; the work has not begun.
        """
        # Waiting bounds the images in memory, and the work that a dying process loses, to one image.
        while not self._start_if_idle(work):
            self.wait()

    def _log_failure(self, error: Exception) -> None:
        # The item itself has already been committed or released: see `worker.consumer.item_run`.
        logger.error("unexpected error while storing", exc_info=error)


class Prefetcher(_SingleThread):
    """Prepares the next item in a thread; drops work that is submitted while it is busy, and work that fails."""

    def __init__(self) -> None:
        super().__init__("flux2-prefetcher")

    def submit(self, work: Callable[[], None]) -> None:
        """Start the work unless the thread is busy."""
        # Dropping work costs time only: rendering prepares any item that is not prepared yet.
        self._start_if_idle(work)

    def _log_failure(self, error: Exception) -> None:
        logger.info("next item not prepared", extra={"error": f"{type(error).__name__}: {error}"})
