"""The job of one line of a batch: submit it, and turn its end into the line's answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Final

from flux2_client.async_client import AsyncClient
from flux2_client.batch.answer_index import AnswerIndex, LineJob
from flux2_client.batch.answer_line import Answer, find_failure
from flux2_client.batch.endpoints import Endpoint, Failure
from flux2_client.batch.image_folder import file_stem, save_images
from flux2_client.batch.request_line import RequestLine
from shared.errors import ApiError, ApiUnreachable, DownloadFailed, UploadRefused

# An API whose queue is full says when there may be room.
_FULL_QUEUE_S: Final = 5.0
# The API's codes of what a key may not render, and of a path that the API lacks.
_KEY_LIMIT: Final = "KEY_LIMIT"
_NO_SUCH_PATH: Final = "NOT_FOUND"


@dataclass(frozen=True)
class Ticket:
    """What is kept of a line after its body was sent."""

    custom_id: str
    answer_id: str
    endpoint: Endpoint
    wants_files: bool

    @classmethod
    def of(cls, line: RequestLine) -> Ticket:
        return cls(line.custom_id, line.answer_id, line.endpoint, line.endpoint.wants_files(line.body))

    def answer(self, request_id: str, failure: Failure | None) -> Answer:
        return Answer(self.answer_id, self.custom_id, None, request_id, failure)


class LineJobs:
    """Submits lines and collects what became of them.

    Args:
        images: folder in which images are saved; None to save none.
    """

    def __init__(self, client: AsyncClient, index: AnswerIndex, *, images: Path | None) -> None:
        self._client = client
        self._index = index
        self._images = images

    async def submit(self, line: RequestLine) -> str | Answer:
        """Return the id of a line's job, or the answer that says why it has none.

        Raises:
            ApiError: the API refuses all lines, or cannot be reached.
        """
        known = self._index.find_job(line.custom_id)
        failed_job = known.failed_job if known else ""
        if known and known.request_id and known.answer_id == line.answer_id and await self._exists(known.request_id):
            return known.request_id
        # An attempt after a failed one needs another key, with which the API accepts another job.
        key = f"{line.answer_id}-{failed_job}" if failed_job else line.answer_id
        try:
            request_id = await self._submit_when_there_is_room(line, key)
        except UploadRefused as error:
            return Ticket.of(line).answer("", Failure(error.code, str(error)))
        except ApiError as error:
            if concerns_all_lines(error):
                raise
            failure = Failure(str(error.problem.get("code", error.code)), str(error.problem.get("detail", error)))
            return replace(Ticket.of(line).answer("", failure), response=line.endpoint.refusal(error))
        self._index.note_job(line.custom_id, LineJob(line.answer_id, request_id, failed_job))
        return request_id

    async def collect(self, ticket: Ticket, request_id: str) -> Answer | None:
        """Return the answer of a job that has ended; None if the API does not know it any more.

        Raises:
            ApiError: the API refuses to say, or cannot be reached.
            OutputRefused: an image cannot be written.
        """
        try:
            result = await self._client.result(request_id)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None
        failure = find_failure(result)
        files = None
        try:
            if self._images is not None:
                stem = file_stem(ticket.custom_id, owns_name=self._index.owns_name(ticket.custom_id))
                files = await save_images(result.images, self._images, stem=stem)
            response = await ticket.endpoint.response(result, failure=failure, wants_files=ticket.wants_files)
        except ApiError as error:
            if concerns_all_lines(error):
                raise
            return ticket.answer(request_id, Failure("download_failed", str(error)))
        return replace(ticket.answer(request_id, failure), response=response, files=files)

    async def _submit_when_there_is_room(self, line: RequestLine, key: str) -> str:
        while True:
            try:
                return await line.endpoint.submit(self._client, line.body, key=key)
            except ApiError as error:
                if not error.retryable or error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    raise
                # Longer than the client repeats a call: a full queue is no outage.
                await asyncio.sleep(error.retry_after_s or _FULL_QUEUE_S)

    async def _exists(self, request_id: str) -> bool:
        try:
            await self._client.status(request_id)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return False
        return True


def concerns_all_lines(error: ApiError) -> bool:
    """Return whether other lines would fail in the same way."""
    code = error.problem.get("code")
    if isinstance(error, DownloadFailed):
        # A store may refuse a single object; one that is away is repeated first.
        return error.retryable
    if isinstance(error, ApiUnreachable) or error.retryable or error.status is None:
        return True
    if error.status == HTTPStatus.FORBIDDEN:
        return code != _KEY_LIMIT
    if error.status == HTTPStatus.NOT_FOUND:
        return code == _NO_SUCH_PATH
    # A limit of the key for the day is no matter of a line either.
    return error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)
