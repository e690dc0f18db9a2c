"""Render a request of OpenAI's interface as a job, and wait for its images unless the caller does not want to."""

from __future__ import annotations

import logging
from functools import partial
from http import HTTPStatus

from anyio import to_thread
from fastapi import BackgroundTasks, Request, Response
from fastapi.responses import JSONResponse

from api.deps import Services
from api.doors.caller import Caller
from api.job_waits import places_for
from api.openai.base64_answer import answer_pieces
from api.openai.generation import ResponseFormat
from api.piece_stream import stream_pieces
from api.poll_interval import first_poll_after_s
from api.result_view import result_view
from api.schemas.openai_images import OpenAIImage, OpenAIImages
from api.status_view import submitted_view
from api.submission import accept_job
from shared.errors import ImagesFailed, ImagesUnfinished, LedgerUnavailable, WaitsBusy
from shared.job import State
from shared.ledger import AcceptedJob, JobView
from shared.log_context import name_request
from shared.request import InferenceRequest

logger = logging.getLogger("flux2.api.openai")


class ImageCall:
    """One call for images.

    Args:
        body_bytes: size of the call's body that is in memory.
        idempotency_key: empty for none; with one, a repeat of the call waits for the same job.
    """

    def __init__(
        self, services: Services, request: Request, caller: Caller, *, body_bytes: int, idempotency_key: str
    ) -> None:
        self._services = services
        self._request = request
        self._caller = caller
        self._places = places_for(body_bytes)
        self._idempotency_key = idempotency_key

    def check_room(self) -> None:
        """Raise `WaitsBusy` if the call could not wait, best before a large body is received."""
        if not self._services.job_waits.has_room(self._caller.tenant, places=self._places):
            raise WaitsBusy

    async def render(self, body: InferenceRequest, *, response_format: ResponseFormat) -> OpenAIImages | Response:
        """Accept the job, wait until it has ended, and return its images, in base64 as a response.

        The job of a caller that leaves is canceled, unless an idempotency key lets a repeat find it.

        Raises:
            WaitsBusy: too many calls wait, or this process stops.
            ImagesFailed: an image failed, or somebody canceled the job.
            ImagesUnfinished: the job has not ended in time.
            Flux2Error: as `accept_job`.
        """
        services, waits, tenant = self._services, self._services.job_waits, self._caller.tenant
        self.check_room()
        wakeups = BackgroundTasks()
        job_id = (await self._accept(body, wakeups)).job_id
        await wakeups()
        has_ended = await waits.wait(
            job_id,
            tenant=tenant,
            places=self._places,
            timeout_s=services.settings.api.openai_wait_s,
            has_left=self._request.is_disconnected,
        )
        if not has_ended:
            await self._give_up(job_id)
        job = await to_thread.run_sync(partial(self._read_finished, job_id))
        answer = await to_thread.run_sync(partial(self._answer, job))
        if response_format == "url":
            return answer
        results = [item.result for item in job.items if item.result is not None]
        limiter = services.archive_limiter
        pieces = answer_pieces(answer, results, services.store)
        return await stream_pieces(pieces, limiter=limiter, media_type="application/json")

    async def submit(self, body: InferenceRequest, *, base_url: str) -> JSONResponse:
        """Accept the job, and return the answer of `POST /v1/inference` to a submit.

        Raises:
            Flux2Error: as `accept_job`.
        """
        wakeups = BackgroundTasks()
        accepted = await self._accept(body, wakeups)
        answer = submitted_view(accepted, base_url=base_url)
        poll_after_s = partial(first_poll_after_s, self._services.ledger, accepted.job_id, images=len(body.prompts))
        headers = {
            "Location": answer.status_url,
            "Retry-After": str(await to_thread.run_sync(poll_after_s)),
            "Preference-Applied": "respond-async",
        }
        if accepted.is_repeat:
            headers["Idempotency-Replayed"] = "true"
        return JSONResponse(answer.model_dump(), HTTPStatus.ACCEPTED, headers=headers, background=wakeups)

    async def _accept(self, body: InferenceRequest, wakeups: BackgroundTasks) -> AcceptedJob:
        accept = partial(
            accept_job, self._services, body, wakeups, idempotency_key=self._idempotency_key, caller=self._caller
        )
        accepted = await self._services.reference_turns.run(body.prompts, accept)
        name_request(accepted.job_id)
        return accepted

    async def _give_up(self, job_id: str) -> None:
        is_stopping = self._services.job_waits.is_stopping()
        if (is_stopping or await self._request.is_disconnected()) and not self._idempotency_key:
            # Nobody would fetch the images, and a repeat of the call renders its own.
            await to_thread.run_sync(partial(self._cancel, job_id))
        if is_stopping:
            raise WaitsBusy("this process of the API stops; send the request again")
        raise ImagesUnfinished(job_id, waited_s=self._services.settings.api.openai_wait_s)

    def _cancel(self, job_id: str) -> None:
        try:
            self._services.ledger.cancel(job_id, tenant=self._caller.visible_tenant)
        except LedgerUnavailable as error:
            logger.warning("job of a caller that left not canceled", extra={"error": str(error)})

    def _read_finished(self, job_id: str) -> JobView:
        job = self._services.ledger.job(job_id)
        if job is None:
            raise ImagesFailed(f"the record of request {job_id} has expired; send the request again")
        if job.state is not State.SUCCEEDED:
            raise _failure(job)
        return job

    def _answer(self, job: JobView) -> OpenAIImages:
        services = self._services
        result = result_view(job, services.store, url_ttl_s=services.settings.storage.url_ttl_s)
        assert result.outputs is not None
        images = sorted(result.outputs.images, key=lambda image: image.index)
        return OpenAIImages(
            created=job.accepted_ms // 1000,
            data=[OpenAIImage(url=image.url, revised_prompt=image.prompt, seed=image.seed) for image in images],
            output_format=images[0].format,
            size=f"{images[0].width}x{images[0].height}",
            request_id=job.job_id,
        )


def _failure(job: JobView) -> ImagesFailed:
    error = next((item.error for item in job.items if item.error is not None), None)
    if error is None:
        return ImagesFailed(f"request {job.job_id} was canceled")
    done = sum(item.state is State.SUCCEEDED for item in job.items)
    rest = f"; GET /v1/requests/{job.job_id}/result has the other images" if done else ""
    return ImagesFailed(f"{error.message}{rest}", code=error.code)
