"""Prepare for the next item while the current one renders."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("flux2.worker.ahead")


class Ahead:
    """Does work in a thread; what is brought while that is busy is left undone, and so is what fails.

    Nothing depends on it: whoever needs what it would have prepared does the work itself.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def __call__(self, work: Callable[[], None]) -> None:
        """Begin the work, unless other work is under way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._do, args=[work], name="flux2-ahead", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when nothing is under way."""
        if self._thread is not None:
            self._thread.join()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the item that needs it will meet it
            logger.info("the next item is not prepared", extra={"error": f"{type(error).__name__}: {error}"})
