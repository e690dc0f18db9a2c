"""Build the lines of the stream of all jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from api.events.feed import state_id
from api.schemas.events import FleetSummary, JobProgress, RunningImage
from api.status_view import WIRE_STATUS
from api.timestamps import format_ms, format_ms_or_none
from shared.job import State
from shared.ledger.job_reader import DEADLINE_EXCEEDED
from shared.ledger.live_jobs import ItemMoves, JobMoves, JobOutline
from shared.ledger.outlook import Outlook
from shared.ledger.queue_reader import QueueSums
from shared.ledger.workers import DRAINING, FAULTY

_PROMPT_CHARS: Final = 120
# No part of a state's id: each process estimates them, at other times.
_ESTIMATES: Final = frozenset({"eta_s", "eta_range_s", "images_last_minute", "seconds_per_image"})


@dataclass(frozen=True)
class Line:
    """One part of the stream's state.

    Attributes:
        text: its JSON.
        state: id of it without its estimates.
    """

    text: str
    state: str

    @classmethod
    def of(cls, body: JobProgress | FleetSummary) -> Line:
        fields = body.model_dump(mode="json")
        return cls(json.dumps(fields), state_id(_without_estimates(fields)))


def job_progress(
    job_id: str, outline: JobOutline, moves: JobMoves, *, outlook: Outlook, error: str | None
) -> JobProgress:
    """Describe a job.

    Args:
        error: message of its first failure; None without one.
    """
    spec = outline.spec
    running = {index: item for index, item in sorted(moves.items.items()) if item.state is State.RUNNING}
    return JobProgress(
        request_id=job_id,
        status=WIRE_STATUS[moves.state],
        model=outline.model,
        items={WIRE_STATUS[state]: count for state, count in moves.counts.items()},
        created_at=format_ms(outline.accepted_ms),
        started_at=format_ms_or_none(moves.started_ms),
        finished_at=format_ms_or_none(moves.finished_ms),
        tenant=outline.tenant,
        progress=_progress(moves, outline.items),
        eta_s=outlook.eta_s,
        eta_range_s=outlook.eta_range_s,
        queue_position=outlook.queue_position,
        priority=outline.priority,
        adapters=outline.adapters,
        prompt=spec and spec.prompt[:_PROMPT_CHARS],
        error=error or _deadline_error(outline, moves),
        images=outline.items,
        cancel_requested=moves.cancel_requested,
        width=spec and spec.requested_width,
        height=spec and spec.requested_height,
        running=[_running_image(index, item) for index, item in running.items()],
    )


def fleet_summary(sums: QueueSums, *, slot_states: Mapping[str, int], images_per_minute: float) -> FleetSummary:
    working = sum(count for state, count in slot_states.items() if state not in (FAULTY, DRAINING))
    return FleetSummary(
        slots=sum(slot_states.values()),
        slot_states=dict(sorted(slot_states.items())),
        queued=sums.queued,
        running=sums.running,
        images_last_minute=images_per_minute,
        seconds_per_image=round(sums.pace_s / working, 2) if sums.pace_s is not None and working else None,
    )


def _without_estimates(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _ESTIMATES}


def _progress(moves: JobMoves, items: int) -> float:
    drawn = [item.progress for item in moves.items.values() if item.state is State.RUNNING and item.progress]
    shares = [progress.step / progress.steps for progress in drawn if progress.steps > 0]
    return round((moves.counts[State.SUCCEEDED] + sum(shares)) / items, 4)


def _running_image(index: int, item: ItemMoves) -> RunningImage:
    progress = item.progress
    return RunningImage(
        index=index,
        stage=progress.stage if progress else None,
        step=progress.step if progress else 0,
        steps=progress.steps if progress else None,
    )


def _deadline_error(outline: JobOutline, moves: JobMoves) -> str | None:
    """Return why images were canceled, if it was because the deadline had passed."""
    if moves.state is not State.CANCELED or moves.cancel_requested or None in (moves.finished_ms, outline.deadline_ms):
        return None
    return DEADLINE_EXCEEDED.message
