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

# Calls at a time; each holds an image of up to FLUX2_REFERENCES_MAX_BYTES, or four that are being fetched.
_CALLS: Final = 8
_MAX_WAIT_S: Final = 5.0
_ADDRESS: Final = re.compile(r"(https?|s3|hf)://", re.IGNORECASE)


class ReferenceTurns:
    """Turns for calls, which wait for them on the event loop and take no thread from polls meanwhile.

    Calls that fetch images of other hosts have their own turns, so a host that does not answer holds no others up.
    """

    def __init__(self) -> None:
        self._near = CapacityLimiter(_CALLS)
        self._fetching = CapacityLimiter(_CALLS)
        self._threads = CapacityLimiter(2 * _CALLS)

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
