"""The endpoints that lines of a batch file name: how a line is submitted, and what its answer is."""

from __future__ import annotations

import asyncio
import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from flux2_client.async_client import AsyncClient, AsyncImage
from flux2_client.batch.images_answer import images_body, refusal_body
from flux2_client.local_images import find_local_images, upload_local_images
from flux2_client.models import Result
from shared.errors import ApiError

INFERENCE: Final = "/v1/inference"
IMAGES: Final = "/v1/images/generations"


class Failure(NamedTuple):
    """Why a line has no images, or not all of them."""

    code: str
    message: str


class Response(NamedTuple):
    """What the endpoint answers to a line."""

    status_code: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint(ABC):
    """One endpoint of the API; `url` is its path."""

    url: str

    @abstractmethod
    async def submit(self, client: AsyncClient, body: Mapping[str, Any], *, key: str) -> str:
        """Submit a line's body with an idempotency key; return the id of its job.

        Raises:
            UploadRefused: a reference image is no file of this host that can be uploaded.
            ApiError: the API refuses the body, or cannot be reached.
        """

    @abstractmethod
    async def response(self, result: Result[AsyncImage], *, failure: Failure | None, wants_files: bool) -> Response:
        """Return the answer to a line whose job has ended.

        Args:
            failure: why the job did not succeed.
            wants_files: whether the answer holds the images themselves.

        Raises:
            ApiError: an image cannot be fetched.
        """

    @abstractmethod
    def refusal(self, error: ApiError) -> Response:
        """Return the answer to a line that the API refused."""

    def wants_files(self, body: Mapping[str, Any]) -> bool:
        """Return whether the answer to a body holds the images themselves."""
        return False


class _Inference(Endpoint):
    """Jobs as this service describes them; the answer is the job's result."""

    async def submit(self, client: AsyncClient, body: Mapping[str, Any], *, key: str) -> str:
        prompts = body.get("prompts")
        # The API says what is wrong with other bodies.
        if isinstance(prompts, list) and all(isinstance(prompt, dict) for prompt in prompts):
            images = await asyncio.to_thread(find_local_images, body)
            body = await upload_local_images(client, body, images)
        return (await client.submit(body, idempotency_key=key)).request_id

    async def response(self, result: Result[AsyncImage], *, failure: Failure | None, wants_files: bool) -> Response:
        return Response(HTTPStatus.OK, result.model_dump(mode="json"))

    def refusal(self, error: ApiError) -> Response:
        return Response(error.status or 0, error.problem)


class _Images(Endpoint):
    """Images in OpenAI's form."""

    async def submit(self, client: AsyncClient, body: Mapping[str, Any], *, key: str) -> str:
        return (await client.submit_images(body, idempotency_key=key)).request_id

    async def response(self, result: Result[AsyncImage], *, failure: Failure | None, wants_files: bool) -> Response:
        if failure is not None:
            body = refusal_body(failure.code, failure.message, kind="server_error")
            return Response(HTTPStatus.INTERNAL_SERVER_ERROR, body)
        files = [base64.b64encode(await image.bytes()).decode() for image in result.images] if wants_files else None
        return Response(HTTPStatus.OK, images_body(result, files))

    def refusal(self, error: ApiError) -> Response:
        return Response(error.status or 0, {"error": error.problem.get("error")})

    def wants_files(self, body: Mapping[str, Any]) -> bool:
        return body.get("response_format") == "b64_json"


#: By their paths.
ENDPOINTS: Final[Mapping[str, Endpoint]] = {INFERENCE: _Inference(INFERENCE), IMAGES: _Images(IMAGES)}
