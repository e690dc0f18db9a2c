"""Give turns to submits with reference images, which take processor time, memory, and the time of other hosts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from shared.errors import ReferenceCheckBusy
from shared.request import PromptItem

T = TypeVar("T")

# Calls at a time that hold their images in their bodies: decoding them takes the processor, which polls need too. With
# 16 callers of 3.4 MB bodies, a poll takes 240 ms at eight calls, 160 ms at four and 190 ms if the images are not read.
_NEAR_CALLS: Final = 4
# Calls at a time that wait for other hosts.
_FETCHING_CALLS: Final = 8
_MAX_WAIT_S: Final = 5.0
_ADDRESS: Final = re.compile(r"(https?|s3|hf)://", re.IGNORECASE)


class ReferenceTurns:
    """Turns for calls, which wait for them on the event loop, where they take no thread from polls.

    Calls that fetch images of other hosts have their own turns, so a host that does not answer holds no others up.
    """

    def __init__(self) -> None:
        self._near = CapacityLimiter(_NEAR_CALLS)
        self._fetching = CapacityLimiter(_FETCHING_CALLS)
        self._threads = CapacityLimiter(_NEAR_CALLS + _FETCHING_CALLS)

    async def run(self, prompts: Iterable[PromptItem], call: Callable[[], T]) -> T:
        """Call a function in a thread, after a turn if the prompts have reference images.

        Raises:
            ReferenceCheckBusy: other calls had the turns for 5 s.
        """
        texts = [text for prompt in prompts for _, _, text in prompt.reference_texts]
        if not texts:
            return await to_thread.run_sync(call)
        turns = self._fetching if any(map(_ADDRESS.match, texts)) else self._near
        with anyio.move_on_after(_MAX_WAIT_S) as waiting:
            await turns.acquire_on_behalf_of(waiting)
        if waiting.cancelled_caught:
            raise ReferenceCheckBusy
        try:
            return await to_thread.run_sync(call, limiter=self._threads)
        finally:
            turns.release_on_behalf_of(waiting)
