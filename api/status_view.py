"""Build the HTTP bodies of the ledger's jobs: the answers to a submit, a poll and a listing."""

from __future__ import annotations

from api.schemas.accepted import Submitted
from api.schemas.job_status import ItemStatus, JobLine, JobStatus, Status, WebhookStatus
from api.timestamps import format_ms, format_ms_or_none
from shared.job import State
from shared.ledger import AcceptedJob, ItemView, JobView
from shared.ledger.views import JobSummary

#: The wire uses the reference API's words, the ledger its own.
WIRE_STATUS: dict[State, JobStatus] = {
    State.QUEUED: "in_queue",
    State.RUNNING: "in_progress",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELED: "canceled",
}

#: States by the words of the wire and of the ledger.
LEDGER_STATE: dict[str, State] = {status: state for state, status in WIRE_STATUS.items()} | {
    state.value: state for state in State
}


def result_url(job_id: str, *, base_url: str) -> str:
    return f"{base_url}/v1/requests/{job_id}/result"


def submitted_view(job: AcceptedJob, *, base_url: str) -> Submitted:
    return Submitted(
        request_id=job.job_id,
        status_url=f"{base_url}/v1/requests/{job.job_id}/status",
        result_url=result_url(job.job_id, base_url=base_url),
        created_at=format_ms(job.accepted_ms),
        warnings=job.record["warnings"],
    )


def status_view(job: JobView) -> Status:
    return Status(
        request_id=job.job_id,
        status=WIRE_STATUS[job.state],
        model=job.model,
        cancel_requested=job.cancel_requested,
        queue_position=job.queue_position,
        eta_s=job.eta_s,
        eta_range_s=job.eta_range_s,
        progress=_progress(job),
        items=[_item_status(item) for item in job.items],
        created_at=format_ms(job.accepted_ms),
        started_at=format_ms_or_none(job.started_ms),
        finished_at=format_ms_or_none(job.finished_ms),
        deadline_at=format_ms_or_none(job.deadline_ms),
        error=first_error(job),
        warnings=job.record["warnings"],
        webhook=WebhookStatus(**vars(job.webhook)) if job.webhook else None,
        sweep_id=job.sweep_id,
    )


def job_line_view(job: JobSummary) -> JobLine:
    return JobLine(
        request_id=job.job_id,
        status=WIRE_STATUS[job.state],
        model=job.model,
        items={WIRE_STATUS[state]: count for state, count in job.counts.items()},
        created_at=format_ms(job.accepted_ms),
        started_at=format_ms_or_none(job.started_ms),
        finished_at=format_ms_or_none(job.finished_ms),
    )


def first_error(job: JobView) -> str | None:
    return next((item.error.message for item in job.items if item.error is not None), None)


def _item_status(item: ItemView) -> ItemStatus:
    return ItemStatus(
        index=item.index,
        status=WIRE_STATUS[item.state],
        attempt=item.attempt,
        # The ledger keeps the last report of an item that has been requeued.
        progress=item.progress if item.state is State.RUNNING else None,
        error=item.error,
    )


def _progress(job: JobView) -> float:
    """Return the share of all denoising steps that led to an image, or belong to an image that is being rendered."""
    total = done = 0
    for item in job.items:
        steps = _step_count(item)
        total += steps
        if item.state is State.SUCCEEDED:
            done += steps
        elif item.state is State.RUNNING and item.progress is not None:
            done += item.progress.step
        # The steps of failed, canceled and requeued items are lost.
    return round(done / total, 4)


def _step_count(item: ItemView) -> int:
    if item.steps is not None:
        return item.steps
    # Another version stored a spec that this version cannot read. A worker reports the number of steps; until then the
    # item counts as one step, so that the share stays defined.
    return item.progress.steps if item.progress is not None else 1
