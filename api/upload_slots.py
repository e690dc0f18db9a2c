"""Bound what one process receives at the same time: each upload has a part of a file, or all of it, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio import CapacityLimiter

from shared.errors import UploadsBusy

_STEP_S = 0.02


class UploadSlots:
    """Places for uploads, which the event loop alone gives out.

    Args:
        count: places, e.g. one for each upload, or one for each byte that uploads may have in memory.
        threads: threads that work for the uploads at the same time.

    Attributes:
        limiter: for these threads, so that uploads take none from polls.
    """

    def __init__(self, count: int, *, threads: int = 4) -> None:
        self._count = count
        self._free = count
        self.limiter = CapacityLimiter(threads)

    @contextmanager
    def take(self, count: int = 1) -> Iterator[None]:
        """Hold places during the block.

        Raises:
            UploadsBusy: fewer are free. The caller does not wait: a body that is not read would time out.
        """
        if count > self._free:
            raise UploadsBusy
        self._free -= count
        try:
            yield
        finally:
            self._free += count

    async def join(self, *, timeout_s: float) -> None:
        """Wait until every place is free again, at most `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            while self._free < self._count:
                await anyio.sleep(_STEP_S)
