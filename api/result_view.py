"""Build the HTTP bodies of a job's images, with freshly signed URLs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from api.schemas.job_result import Image, ImageAdapter, ImageLine, ImageReference, ItemFailure, Outputs, Result
from api.status_view import WIRE_STATUS, first_error
from api.timestamps import format_ms, format_ms_or_none, format_time
from shared.job import ItemResult, SpecReport, State
from shared.ledger import ItemView, JobView
from shared.ledger.views import FinishedImage
from shared.references import reference_key


class UrlSource(Protocol):
    """The part of an `ObjectStore` that signs URLs."""

    def url(self, key: str, *, expires_s: int) -> str: ...


class NoUrls:
    """Gives empty URLs, for views whose URLs are left out: a signature takes 0.3 ms."""

    def url(self, key: str, *, expires_s: int) -> str:
        return ""


def result_view(job: JobView, store: UrlSource, *, url_ttl_s: int) -> Result:
    """Describe the finished images of a job, also of a canceled or failed one."""
    preset = job.record.get("preset")
    found = (image_view(item, store, preset=preset, url_ttl_s=url_ttl_s) for item in job.items)
    images = [image for image in found if image is not None]
    return Result(
        request_id=job.job_id,
        status=WIRE_STATUS[job.state],
        outputs=Outputs(images=images) if images else None,
        error=first_error(job),
        errors=[ItemFailure(index=item.index, **item.error.model_dump()) for item in job.items if item.error],
        created_at=format_ms(job.accepted_ms),
        finished_at=format_ms_or_none(job.finished_ms),
        metadata={
            "model": job.model,
            "warnings": [*job.record["warnings"], *_unreadable_parts(job)],
            "timings": {
                "queue_s": _seconds(job.accepted_ms, job.started_ms),
                "total_s": _seconds(job.accepted_ms, job.finished_ms),
                "prompts": [{"index": image.index, **image.timings} for image in images],
            },
        },
    )


def image_view(item: ItemView, store: UrlSource, *, preset: str | None, url_ttl_s: int) -> Image | None:
    """Describe an image; None if it is not finished."""
    if item.result is None:
        return None
    return Image(**_image_fields(item.index, item.spec, item.result, store, preset=preset, url_ttl_s=url_ttl_s))


def image_line_view(image: FinishedImage, store: UrlSource, *, url_ttl_s: int) -> ImageLine:
    """Describe one image of the listing."""
    job = image.job
    return ImageLine(
        **_image_fields(image.index, image.spec, image.result, store, preset=image.preset, url_ttl_s=url_ttl_s),
        request_id=job.job_id,
        model=job.model,
        tenant=image.tenant,
        created_at=format_ms(job.accepted_ms),
        finished_at=format_ms_or_none(job.finished_ms),
    )


def _image_fields(
    index: int,
    spec: SpecReport | None,
    result: ItemResult,
    store: UrlSource,
    *,
    preset: str | None,
    url_ttl_s: int,
) -> dict[str, Any]:
    thumbnail = result.thumbnail_key
    return {
        "index": index,
        "format": result.format,
        "width": result.width,
        "height": result.height,
        **_request_parameters(spec),
        "preset": preset,
        # Signed for each answer: a URL that was stored with the job would expire.
        "url": store.url(result.key, expires_s=url_ttl_s),
        "url_expires_at": format_time(datetime.now(UTC) + timedelta(seconds=url_ttl_s)),
        "thumbnail_url": None if thumbnail is None else store.url(thumbnail, expires_s=url_ttl_s),
        "sha256": result.sha256,
        "size_bytes": result.size_bytes,
        "adapters": [
            ImageAdapter(**adapter.model_dump(), network_multiplier=adapter.multiplier) for adapter in result.adapters
        ],
        "references": [
            ImageReference(
                **reference.model_dump(), url=store.url(reference_key(reference.sha256), expires_s=url_ttl_s)
            )
            for reference in result.references
        ],
        "tokens": result.tokens,
        "pipeline": result.pipeline,
        "timings": result.timings,
        "warnings": list(result.warnings),
    }


def _request_parameters(spec: SpecReport | None) -> dict[str, Any]:
    """Return an image's parameters by their wire names; all are None if the stored spec cannot be read."""
    fields = dict.fromkeys(SpecReport.model_fields) if spec is None else spec.model_dump()
    return {"sample_steps": fields.pop("num_inference_steps"), **fields}


def _unreadable_parts(job: JobView) -> Iterator[str]:
    """Yield a warning for each finished image that another version stored in a form that this version cannot read."""
    for item in job.items:
        if item.state is State.SUCCEEDED and (item.spec is None or item.result is None):
            part = "result" if item.result is None else "parameters"
            yield f"image {item.index}: this API cannot read its {part}, which another version stored"


def _seconds(start_ms: int, end_ms: int | None) -> float | None:
    return None if end_ms is None else (end_ms - start_ms) / 1000
