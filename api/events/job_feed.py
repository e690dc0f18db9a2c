"""Follow one job: its status as a snapshot, then the fields and images that change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi.sse import ServerSentEvent

from api.events.feed import ESTIMATES_S, Feed, Reading, event, state_id
from api.status_view import status_view
from shared.job import TERMINAL, State
from shared.ledger import ItemView, JobView, Ledger
from shared.ledger.live_jobs import ItemMoves, JobMoves
from shared.ledger.outlook import Outlook

# No part of the state's id: each process estimates them, at other times.
_ESTIMATES: Final = ("eta_s", "eta_range_s")


class JobFeed(Feed):
    """The status of one job."""

    def __init__(self, job_id: str) -> None:
        super().__init__()
        self._job_id = job_id
        self._job: JobView | None = None
        self._moves: JobMoves | None = None
        self._estimated_s = 0.0
        self._body: dict[str, Any] = {}
        self._id = ""

    def choose(self, ledger: Ledger, reading: Reading) -> Mapping[str, Collection[int]]:
        return {self._job_id: {*self._running(), *reading.running.get(self._job_id, ())}}

    def update(self, ledger: Ledger, reading: Reading) -> ServerSentEvent | None:
        moves = reading.moves[self._job_id]
        if moves is None:
            self.is_gone = True
            return None
        job = self._follow(ledger, moves, now_s=reading.now_s)
        self._moves = moves
        self.is_gone = job is None
        return None if job is None or job is self._job else self._show(job)

    def snapshot(self) -> ServerSentEvent:
        return event("snapshot", json.dumps(self._body), state=self._id)

    def resumption(self) -> ServerSentEvent | None:
        if self.is_over:
            return None
        return event("change", json.dumps({name: self._body[name] for name in _ESTIMATES}), state=self._id)

    def running_items(self) -> Collection[str]:
        return [f"{self._job_id}:{index}" for index in self._running()]

    def _running(self) -> list[int]:
        return [] if self._job is None else [item.index for item in self._job.items if item.state is State.RUNNING]

    def _follow(self, ledger: Ledger, moves: JobMoves, *, now_s: float) -> JobView | None:
        """Return the job as it is now: the same view if nothing changed; None if it is forgotten."""
        if self._job is None or self._moves is None:
            self._estimated_s = now_s
            return self._read(ledger)
        job = self._job if moves == self._moves else self._advance(ledger, self._job, moves)
        if job is None or job.state in TERMINAL:
            return job and replace(job, **vars(Outlook()))
        if moves.counts != self._moves.counts or now_s - self._estimated_s >= ESTIMATES_S:
            self._estimated_s = now_s
            return _with_outlook(ledger, job, moves)
        return job

    def _show(self, job: JobView) -> ServerSentEvent | None:
        """Take over a view of the job and return how it differs from the last one."""
        before, was_loaded = self._body, self.is_loaded
        self._job, self._body = job, status_view(job).model_dump(mode="json")
        self._id = state_id({name: value for name, value in self._body.items() if name not in _ESTIMATES})
        self.is_loaded, self.is_over = True, job.state in TERMINAL
        changes = {name: value for name, value in self._body.items() if value != before.get(name)}
        if not was_loaded or not changes:
            return None
        if "items" in changes:
            pairs = zip(changes["items"], before["items"], strict=True)
            changes["items"] = [item for item, earlier in pairs if item != earlier]
        return event("change", json.dumps(changes), state=self._id)

    def _read(self, ledger: Ledger) -> JobView | None:
        job = ledger.job(self._job_id)
        return None if job is None else replace(job, items=tuple(map(_without_texts, job.items)))

    def _advance(self, ledger: Ledger, job: JobView, moves: JobMoves) -> JobView | None:
        """Return the job after its moves, without reading its other items if these explain the counts."""
        items = list(job.items)
        for index, move in moves.items.items():
            items[index] = _advance_item(ledger, self._job_id, items[index], move)
        counts = Counter(item.state for item in items)
        if any(counts[state] != count for state, count in moves.counts.items()):
            # Others were canceled, or started and ended since.
            return self._read(ledger)
        return replace(
            job,
            items=tuple(items),
            state=moves.state,
            cancel_requested=moves.cancel_requested,
            started_ms=moves.started_ms,
            finished_ms=moves.finished_ms,
            webhook=moves.webhook,
        )


def _with_outlook(ledger: Ledger, job: JobView, moves: JobMoves) -> JobView:
    outlook = ledger.live_jobs.outlooks({job.job_id: moves}, items={job.job_id: len(job.items)})[job.job_id]
    return replace(job, **vars(outlook))


def _advance_item(ledger: Ledger, job_id: str, item: ItemView, move: ItemMoves) -> ItemView:
    if move.state in (State.FAILED, State.CANCELED) and move.state != item.state:
        # With its error, which is a text of the job.
        ended = ledger.ended_item(job_id, item.index)
        if ended is not None:
            return replace(_without_texts(ended.item), steps=item.steps)
    return replace(item, state=move.state, attempt=move.attempt, progress=move.progress)


def _without_texts(item: ItemView) -> ItemView:
    """Return an item without what the status does not show: a job of a thousand prompts has megabytes of it."""
    return replace(item, spec=None, result=None)
