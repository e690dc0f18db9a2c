"""Submit a request of any size: upload its images, and split it into as many jobs as the API needs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flux2_client.composition import fill_seeds, split_request
from flux2_client.local_images import find_local_images, upload_local_images
from flux2_client.report import print_message
from shared.errors import ApiError

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient
    from flux2_client.models import ModelList
    from flux2_client.report import Report
    from flux2_client.terminal import Session


class SubmittedPart(NamedTuple):
    """The job that renders the next `images` prompts of a request."""

    request_id: str
    images: int


async def submit_request(
    client: AsyncClient, request: Mapping[str, Any], *, session: Session, report: Report, key: str | None = None
) -> list[SubmittedPart]:
    """Submit a request, as one job if the API takes it as one, and note the jobs in `session`.

    Args:
        key: Idempotency-Key of the whole request; None for none.

    Raises:
        UploadRefused: see `find_local_images`; nothing was sent.
        ApiError: the API refuses a part, or cannot be reached; the parts before it go on.
    """
    # Before anything is sent: all files are sound, or nothing is uploaded.
    images = find_local_images(request)
    known = await client.models()
    request = await upload_local_images(client, request, images, report)
    parts = list(split_request(request, known.limits))
    if len(parts) > 1:
        parts = list(split_request(fill_seeds(request, first=default_seed(request, known)), known.limits))
    submitted = []
    printed: set[str] = set()
    for number, part in enumerate(parts):
        # A key for each part, and the plain one if there is one part.
        part_key = key if key is None or len(parts) == 1 else f"{key}#{number}"
        try:
            job = await client.submit(part, idempotency_key=part_key)
        except ApiError as error:
            explained = _explain_local_file(error, request)
            if explained is None:
                raise
            raise explained from error
        session.jobs.append(job.request_id)
        submitted.append(SubmittedPart(job.request_id, len(part["prompts"])))
        report.submitted(job, images=len(part["prompts"]))
        for warning in job.warnings:
            if warning not in printed:
                print_message(f"warning: {warning}")
        printed.update(job.warnings)
    return submitted


def default_seed(request: Mapping[str, Any], known: ModelList) -> int:
    """Return the seed that the API gives the first prompt of a request."""
    return next((model.default_seed for model in known.models if model.id == request.get("model")), 42)


def _explain_local_file(error: ApiError, request: Mapping[str, Any]) -> ApiError | None:
    """Return an error that says how to upload a file, if the API does not know a file that is on this host."""
    if not str(error).startswith(("LORA_NOT_FOUND", "INVALID_LORA")):
        return None
    for lora in request.get("loras") or []:
        path = lora.get("path") if isinstance(lora, dict) else None
        if isinstance(path, str) and path in str(error) and Path(path).is_file():
            return ApiError(
                f"{error}. This host has {path}: upload it with `flux2 adapters push {shlex.quote(path)}`, and give "
                "what that prints to --lora",
                status=error.status,
            )
    return None
