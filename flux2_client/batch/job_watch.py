"""Learn when jobs end: one call for all of them, however many are under way."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from flux2_client.async_client import AsyncClient
from flux2_client.models import FINAL_STATES
from shared.errors import ApiError

# The pauses between two looks grow while no job ends.
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0
# The API's largest page.
_PAGE: Final = 200
# Newer jobs of others that a look reads; the jobs behind them are asked for one by one.
_MOST_LINES: Final = 1000


class JobWatch:
    """Waits for jobs by reading the listing of jobs, newest first, until it has seen all of them."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self._is_needed = asyncio.Event()

    async def wait(self, request_id: str) -> bool:
        """Return True when a job has ended; False if the API does not know it any more.

        Raises:
            ApiError: the API refuses to say, or cannot be reached.
        """
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = ended
        self._is_needed.set()
        try:
            return await ended
        finally:
            del self._waiting[request_id]

    async def run(self) -> None:
        """Look for jobs that have ended, until it is canceled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            if not self._waiting:
                self._is_needed.clear()
                await self._is_needed.wait()
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            try:
                has_found = await self._look()
            except ApiError as error:
                for ended in self._waiting.values():
                    if not ended.done():
                        ended.set_exception(error)
                has_found = False
            pause_s = max(pause_s / 2, _FIRST_PAUSE_S) if has_found else min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _look(self) -> bool:
        """Read the listing once; return whether a job has ended."""
        # Jobs that are accepted from now on may be missing in it.
        missing = {request_id for request_id, ended in self._waiting.items() if not ended.done()}
        before = len(missing)
        read, still_open = 0, 0
        async for job in self._client.requests(page_size=min(_PAGE, max(20, before))):
            read += 1
            if job.request_id in missing:
                missing.discard(job.request_id)
                if job.status in FINAL_STATES:
                    self._note(job.request_id, has_ended=True)
                else:
                    still_open += 1
            if not missing or read >= _MOST_LINES:
                break
        for request_id in missing:
            still_open += not await self._ask(request_id)
        return still_open < before

    async def _ask(self, request_id: str) -> bool:
        try:
            has_ended = (await self._client.status(request_id)).has_ended
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            self._note(request_id, has_ended=False)
            return True
        if has_ended:
            self._note(request_id, has_ended=True)
        return has_ended

    def _note(self, request_id: str, *, has_ended: bool) -> None:
        ended = self._waiting.get(request_id)
        if ended is not None and not ended.done():
            ended.set_result(has_ended)
