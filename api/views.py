"""What the ledger holds, in the words of the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from api.schemas import (
    Image,
    ItemFailure,
    ItemStatus,
    JobLine,
    JobStatus,
    Outputs,
    Result,
    Status,
    Submitted,
    WebhookStatus,
)
from shared.job import SpecReport, State
from shared.ledger import Accepted, ItemView, JobView
from shared.ledger.views import JobSummary
from shared.storage import ObjectStore

_STATUS: dict[State, JobStatus] = {
    State.QUEUED: "in_queue",
    State.RUNNING: "in_progress",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELED: "canceled",
}

#: The ledger's states by the wire's words.
STATES = {word: state for state, word in _STATUS.items()}


def submitted(job: Accepted, *, base_url: str) -> Submitted:
    return Submitted(
        request_id=job.job_id,
        status_url=f"{base_url}/v1/requests/{job.job_id}/status",
        result_url=f"{base_url}/v1/requests/{job.job_id}/result",
        created_at=_time(job.accepted_ms),
        warnings=job.record["warnings"],
    )


def status(job: JobView) -> Status:
    return Status(
        request_id=job.job_id,
        status=_STATUS[job.state],
        model=job.model,
        cancel_requested=job.cancel_requested,
        queue_position=job.queue_position,
        eta_s=job.eta_s,
        progress=_progress(job),
        items=[
            ItemStatus(
                index=item.index,
                status=_STATUS[item.state],
                attempt=item.attempt,
                progress=item.progress if item.state is State.RUNNING else None,
                error=item.error,
            )
            for item in job.items
        ],
        created_at=_time(job.accepted_ms),
        started_at=_maybe_time(job.started_ms),
        finished_at=_maybe_time(job.finished_ms),
        error=_first_error(job),
        warnings=job.record["warnings"],
        webhook=WebhookStatus(**vars(job.webhook)) if job.webhook else None,
    )


def ended_message(job: JobView, *, base_url: str) -> str:
    """Write what a webhook says: the same text whenever it is written. Images are fetched by the result."""
    assert job.finished_ms is not None
    word = _STATUS[job.state]
    data = {
        "request_id": job.job_id,
        "status": word,
        "model": job.model,
        "items": [{"index": item.index, "status": _STATUS[item.state]} for item in job.items],
        "error": _first_error(job),
        "result_url": f"{base_url}/v1/requests/{job.job_id}/result",
    }
    return json.dumps({"type": f"request.{word}", "timestamp": _time(job.finished_ms), "data": data})


def result(job: JobView, store: ObjectStore, *, url_ttl_s: int) -> Result:
    """Sign fresh URLs for the images that are done; a canceled or failed job keeps those it finished."""
    images = [_image(item, store, url_ttl_s=url_ttl_s) for item in job.items if item.result is not None]
    return Result(
        request_id=job.job_id,
        status=_STATUS[job.state],
        outputs=Outputs(images=images) if images else None,
        error=_first_error(job),
        errors=[ItemFailure(index=item.index, **item.error.model_dump()) for item in job.items if item.error],
        created_at=_time(job.accepted_ms),
        finished_at=_maybe_time(job.finished_ms),
        metadata={
            "model": job.model,
            "warnings": [*job.record["warnings"], *_untold(job)],
            "timings": {
                "queue_s": _seconds(job.accepted_ms, job.started_ms),
                "total_s": _seconds(job.accepted_ms, job.finished_ms),
                "prompts": [{"index": image.index, **image.timings} for image in images],
            },
        },
    )


def line(job: JobSummary) -> JobLine:
    return JobLine(
        request_id=job.job_id,
        status=_STATUS[job.state],
        model=job.model,
        items={_STATUS[state]: count for state, count in job.counts.items()},
        created_at=_time(job.accepted_ms),
        started_at=_maybe_time(job.started_ms),
        finished_at=_maybe_time(job.finished_ms),
    )


def _image(item: ItemView, store: ObjectStore, *, url_ttl_s: int) -> Image:
    assert item.result is not None
    made = item.result
    return Image(
        index=item.index,
        format=made.format,
        width=made.width,
        height=made.height,
        **_parameters(item.spec),
        url=store.url(made.key, expires_s=url_ttl_s),
        url_expires_at=_iso(datetime.now(UTC) + timedelta(seconds=url_ttl_s)),
        sha256=made.sha256,
        size_bytes=made.size_bytes,
        adapters=list(made.adapters),
        pipeline=made.pipeline,
        timings=made.timings,
    )


def _parameters(spec: SpecReport | None) -> dict[str, Any]:
    """An image's parameters in the words of the wire; each null where the spec cannot be read."""
    told = dict.fromkeys(SpecReport.model_fields) if spec is None else spec.model_dump()
    return {"sample_steps": told.pop("num_inference_steps"), **told}


def _untold(job: JobView) -> Iterator[str]:
    """Name the finished images of which a part cannot be read here."""
    for item in job.items:
        if item.state is State.SUCCEEDED and (item.spec is None or item.result is None):
            part = "result" if item.result is None else "parameters"
            yield f"image {item.index}: this API cannot read its {part}, which another version stored"


def _progress(job: JobView) -> float:
    """Share of all denoising steps done; items that failed or were canceled count as done."""
    total = done = 0
    for item in job.items:
        steps = _steps(item)
        total += steps
        if item.finished_ms is not None:
            done += steps
        elif item.progress is not None:
            done += item.progress.step
    return round(done / total, 4)


def _steps(item: ItemView) -> int:
    """Of denoising; where the spec cannot be read, as its worker says, or 1 while none does."""
    if item.spec is not None:
        return item.spec.num_inference_steps
    return item.progress.steps if item.progress is not None else 1


def _first_error(job: JobView) -> str | None:
    return next((item.error.message for item in job.items if item.error is not None), None)


def _seconds(start_ms: int, end_ms: int | None) -> float | None:
    return None if end_ms is None else (end_ms - start_ms) / 1000


def _maybe_time(ms: int | None) -> str | None:
    return None if ms is None else _time(ms)


def _time(ms: int) -> str:
    return _iso(datetime.fromtimestamp(ms / 1000, UTC))


def _iso(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds and Z."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
