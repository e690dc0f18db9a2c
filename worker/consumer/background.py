"""Work in threads while an item renders: storing the image before, and preparing the item after."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("flux2.worker.background")

#: When to begin: after the first step, under which weights may still be on their way.
STEP_TO_PREPARE = 2


class AtOnce:
    """Does work here and now."""

    def __call__(self, work: Callable[[], None]) -> None:
        """Do the work."""
        work()

    def wait(self) -> None:
        """Return at once: nothing is ever under way."""


class Behind:
    """Does work in a thread, one piece at a time: who brings the next waits until the one before is done.

    What is in the work's hands is then bounded, and so is what a process that dies loses.

    Attributes:
        name: of the thread.
    """

    name = "flux2-behind"

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def __call__(self, work: Callable[[], None]) -> None:
        """Begin the work, once what was brought before is done."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=[work], name=self.name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Return when nothing is under way."""
        if self._thread is not None:
            self._thread.join()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - see `_failed`
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Whatever it was about has been told by then: see `worker.consumer.item_run`."""
        logger.error("unexpected", exc_info=error)


class Ahead(Behind):
    """Does work in a thread; what is brought while that is busy is left undone, and so is what fails.

    Nothing depends on it: whoever needs what it would have prepared does the work itself.
    """

    name = "flux2-ahead"

    def __call__(self, work: Callable[[], None]) -> None:
        """Begin the work, unless other work is under way."""
        if not self.busy:
            super().__call__(work)

    def _failed(self, error: Exception) -> None:
        logger.info("the next item is not prepared", extra={"error": f"{type(error).__name__}: {error}"})
