"""Build the HTTP bodies of the ledger's sweeps."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from api.result_view import UrlSource, image_view
from api.schemas.sweep import (
    SweepAxis,
    SweepCell,
    SweepCounts,
    SweepJob,
    SweepJobStatus,
    SweepLine,
    SweepResult,
    SweepState,
    SweepStatus,
    SweepSubmitted,
)
from api.sweeps.axes import JobPart, SweepRecord, Values
from api.timestamps import format_ms, format_ms_or_none
from shared.job import State
from shared.ledger import AcceptedSweep, ItemView, SweepView
from shared.ledger.outlook import Outlook

_DIGITS = 4


def sweep_record(sweep: SweepView) -> SweepRecord:
    """Read what the API stored about a sweep."""
    return SweepRecord.model_validate_json(sweep.record)


def submitted_view(sweep: AcceptedSweep, *, base_url: str) -> SweepSubmitted:
    record = SweepRecord.model_validate_json(sweep.record)
    url = f"{base_url}/v1/sweeps/{sweep.sweep_id}"
    return SweepSubmitted(
        sweep_id=sweep.sweep_id,
        images=record.images,
        jobs=[
            SweepJob(request_id=job_id, checkpoint=part.checkpoint, multiplier=part.multiplier)
            for job_id, part in zip(sweep.job_ids, record.jobs, strict=True)
        ],
        status_url=f"{url}/status",
        result_url=f"{url}/result",
        cancel_url=f"{url}/cancel",
        created_at=format_ms(sweep.accepted_ms),
        warnings=list(record.warnings),
    )


def line_view(sweep: SweepView) -> SweepLine:
    return SweepLine(**_moving_fields(sweep))


def status_view(sweep: SweepView, outlook: Outlook) -> SweepStatus:
    record = sweep_record(sweep)
    return SweepStatus(
        **_moving_fields(sweep),
        eta_s=outlook.eta_s,
        eta_range_s=eta_range(outlook),
        jobs=[
            SweepJobStatus(
                request_id=job_id, checkpoint=part.checkpoint, multiplier=part.multiplier, status=_word(job.state)
            )
            for (job_id, job), part in zip(sweep.jobs.items(), record.jobs, strict=True)
        ],
        warnings=list(record.warnings),
    )


def eta_range(outlook: Outlook) -> list[float] | None:
    return None if outlook.eta_range_s is None else list(outlook.eta_range_s)


def cell_spans(sweep: SweepView, record: SweepRecord, *, start: int, limit: int) -> list[tuple[str, range]]:
    """Return the jobs that have the images from `start` on, this many at most, and the indices of these images."""
    spans, before = [], 0
    stop = start + limit
    for job_id, part in zip(sweep.jobs, record.jobs, strict=True):
        indices = range(max(start - before, 0), min(stop - before, part.images))
        if indices:
            spans.append((job_id, indices))
        before += part.images
    return spans


def result_view(
    sweep: SweepView,
    record: SweepRecord,
    items: Sequence[tuple[ItemView, ...]],
    spans: Sequence[tuple[str, range]],
    *,
    next_start: int | None,
    store: UrlSource,
    url_ttl_s: int,
) -> SweepResult:
    """Describe one page of a sweep's images.

    Args:
        items: those of `spans`, which `cell_spans` returned.
        next_start: number of the image with which the next page begins; None on the last.
    """
    parts = dict(zip(sweep.jobs, record.jobs, strict=True))
    return SweepResult(
        sweep_id=sweep.sweep_id,
        status=_word(sweep.state),
        model=sweep.model,
        axes=_axes(record),
        cells=[
            _cell(job_id, parts[job_id], record, item, store=store, url_ttl_s=url_ttl_s)
            for (job_id, _), found in zip(spans, items, strict=True)
            for item in found
        ],
        has_more=next_start is not None,
        next_cursor=None if next_start is None else str(next_start),
    )


def _moving_fields(sweep: SweepView) -> dict[str, Any]:
    counts = sweep.counts
    images = sum(counts.values())
    return {
        "sweep_id": sweep.sweep_id,
        "status": _word(sweep.state),
        "model": sweep.model,
        "images": images,
        "counts": SweepCounts(**{state.value: count for state, count in counts.items()}),
        "progress": round(counts[State.SUCCEEDED] / images, _DIGITS),
        "created_at": format_ms(sweep.accepted_ms),
        "started_at": format_ms_or_none(sweep.started_ms),
        "finished_at": format_ms_or_none(sweep.finished_ms),
    }


def _word(state: State) -> SweepState:
    return state.value


def _axes(record: SweepRecord) -> list[SweepAxis]:
    axes = record.axes
    own = axes.prompts
    values: dict[str, Iterable[Hashable]] = {
        "checkpoint": (job.checkpoint for job in record.jobs),
        "multiplier": (job.multiplier for job in record.jobs),
        "seed": axes.seeds or (prompt.seed for prompt in own),
        "prompt": axes.texts,
        "size": map(_size, axes.sizes or ((prompt.width, prompt.height) for prompt in own)),
        "steps": axes.steps or (prompt.steps for prompt in own),
        "guidance_scale": axes.guidance_scales or (prompt.guidance_scale for prompt in own),
    }
    return [
        # An image names its prompt by the index, so a text that occurs twice stays.
        SweepAxis.model_validate({"name": name, "values": list(found if name == "prompt" else dict.fromkeys(found))})
        for name, found in values.items()
    ]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _cell(
    job_id: str, part: JobPart, record: SweepRecord, item: ItemView, *, store: UrlSource, url_ttl_s: int
) -> SweepCell:
    place = part.first + item.index
    values: Values = record.axes.values(place)
    return SweepCell(
        checkpoint=part.checkpoint,
        multiplier=part.multiplier,
        seed=values.seed,
        prompt=record.axes.choice(place).prompt,
        size=_size((values.width, values.height)),
        steps=values.steps,
        guidance_scale=values.guidance_scale,
        request_id=job_id,
        index=item.index,
        status=_word(item.state),
        image=image_view(item, store, preset=record.preset, url_ttl_s=url_ttl_s),
        error=item.error,
    )
