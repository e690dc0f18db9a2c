"""Prepare for the next item while the current one renders."""

from __future__ import annotations

import logging
from collections.abc import Callable

from worker.behind import Behind

logger = logging.getLogger("flux2.worker.ahead")

#: When to begin: after the first step, under which weights may still be on their way.
STEP_TO_PREPARE = 2


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
