"""Bound how many uploads one process receives at the same time: each has a piece of a file in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio import CapacityLimiter

from shared.errors import UploadsBusy

_STEP_S = 0.02


class UploadSlots:
    """Places for uploads, which the event loop alone gives out.

    Attributes:
        limiter: for the threads that work for the uploads, so that these take none from polls.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = count
        self.limiter = CapacityLimiter(count)

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place during the block.

        Raises:
            UploadsBusy: every place is taken. The caller does not wait: a body that is not read would time out.
        """
        if not self._free:
            raise UploadsBusy
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def join(self, *, timeout_s: float) -> None:
        """Wait until every place is free again, at most `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            while self._free < self._count:
                await anyio.sleep(_STEP_S)
