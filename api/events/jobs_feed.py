"""Follow the jobs of a tenant, or of all: those that have not ended, and those that ended last."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fastapi.sse import ServerSentEvent

from api.events.feed import ESTIMATES_S, Feed, Reading, event, state_id
from api.events.job_lines import Line, fleet_summary, job_progress
from shared.job import TERMINAL, State
from shared.ledger import Ledger
from shared.ledger.live_jobs import JobMoves, JobOutline
from shared.ledger.outlook import Outlook

#: Jobs that a state shows, at most.
OPEN_JOBS: Final = 200
ENDED_JOBS: Final = 30
# Unfinished jobs that a feed knows. Those that were canceled, or ran, before it showed them are among them.
_KNOWN_JOBS: Final = 2400


@dataclass(frozen=True)
class _ShownJob:
    """A job as listeners have it."""

    outline: JobOutline
    moves: JobMoves
    outlook: Outlook
    error: str | None
    line: Line


class JobsFeed(Feed):
    """The jobs of a tenant and a summary of the fleet.

    Args:
        tenant: None for the jobs of all tenants.
    """

    def __init__(self, tenant: str | None) -> None:
        super().__init__()
        self.tenant = tenant
        # Accept orders of the newest item of all tenants, and of the newest job that was found.
        self._sequence = -1
        self._newest: int | None = None
        # Unfinished jobs with their accept orders, which are more than a state shows if there are many.
        self._open: dict[str, int] = {}
        # Jobs that ended, with their ends in ms.
        self._ended: dict[str, int] = {}
        # Those that the next update shows.
        self._chosen: list[str] = []
        self._shown: dict[str, _ShownJob] = {}
        self._fleet = Line("", "")
        self._images_per_minute = 0.0
        self._estimated_s = float("-inf")

    def choose(self, ledger: Ledger, reading: Reading) -> Mapping[str, Collection[int]]:
        self._find(ledger, reading)
        running = {job for job, owner in reading.owners.items() if self.tenant in (None, owner)}
        for job_id in running - self._open.keys() - self._ended.keys():
            # Accepted before the newest thousands of jobs, so it is shown while it runs.
            self._open[job_id] = -1
        # Running jobs first, and the newest first of each kind.
        ranked = sorted(self._open, key=lambda job: (job in running, self._open[job]), reverse=True)
        if len(ranked) > _KNOWN_JOBS:
            # A job that is left out comes back when it runs.
            self._open = {job: self._open[job] for job in ranked[:_KNOWN_JOBS]}
        self._chosen = [*ranked[:OPEN_JOBS], *self._ended]
        return {job: {*self._running_of(job), *reading.running.get(job, ())} for job in self._chosen}

    def update(self, ledger: Ledger, reading: Reading) -> ServerSentEvent | None:
        moves = {job: found for job in self._chosen if (found := reading.moves[job]) is not None}
        is_due = reading.now_s - self._estimated_s >= ESTIMATES_S
        shown = self._show(ledger, moves, is_due=is_due)
        sums = reading.sums[self.tenant]
        images = sums.images_per_minute if is_due else self._images_per_minute
        fleet = Line.of(fleet_summary(sums, slot_states=reading.slot_states, images_per_minute=images))
        # Nothing is written before everything was read: a reading that fails must lose no change.
        self._images_per_minute = images
        self._estimated_s = reading.now_s if is_due else self._estimated_s
        self._sort_out(moves)
        kept = {job: line for job, line in shown.items() if job in self._open or job in self._ended}
        return self._replace(kept, fleet)

    def snapshot(self) -> ServerSentEvent:
        return event("snapshot", _json(jobs=self._texts(self._shown), fleet=self._fleet.text), state=self._state())

    def resumption(self) -> ServerSentEvent | None:
        estimated = [job for job, shown in self._shown.items() if shown.outlook.eta_s is not None]
        text = _json(jobs=self._texts(estimated), fleet=self._fleet.text)
        return event("change", text, state=self._state())

    def running_items(self) -> Collection[str]:
        return [f"{job}:{index}" for job in self._shown for index in self._running_of(job)]

    def _running_of(self, job_id: str) -> list[int]:
        shown = self._shown.get(job_id)
        items = shown.moves.items if shown else {}
        return [index for index, item in items.items() if item.state is State.RUNNING]

    def _find(self, ledger: Ledger, reading: Reading) -> None:
        """Find the jobs that came since the last time; at first, those that are worth showing."""
        if reading.sequence == self._sequence:
            return
        if self._newest is not None and reading.sequence < self._newest:
            # Redis was emptied, or holds older data.
            self._newest = None
        is_first = self._newest is None
        sums = reading.sums[self.tenant]
        missing = sums.queued + sums.running
        found = []
        for job in ledger.live_jobs.newest(tenant=self.tenant, after=self._newest):
            found.append(job)
            missing -= job.counts[State.QUEUED] + job.counts[State.RUNNING]
            if is_first and missing <= 0 and sum(job.state in TERMINAL for job in found) >= ENDED_JOBS:
                break
        for job in found:
            if job.finished_ms is None:
                self._open[job.job_id] = job.order
            else:
                self._ended[job.job_id] = job.finished_ms
        self._newest = max((job.order for job in found), default=self._newest or 0)
        self._sequence = reading.sequence
        self._forget_early_ends()

    def _show(self, ledger: Ledger, moves: Mapping[str, JobMoves], *, is_due: bool) -> dict[str, _ShownJob]:
        """Return the jobs as they are now."""
        before = self._shown
        outlines = {job: shown.outline for job, shown in before.items()}
        outlines |= ledger.live_jobs.outlines([job for job in moves if job not in before])
        # A job may be forgotten between two reads.
        moves = {job: found for job, found in moves.items() if job in outlines}
        moved = {job for job in moves if job not in before or before[job].moves.counts != moves[job].counts}
        estimated = {job: found for job, found in moves.items() if is_due or job in moved}
        outlooks = _read_outlooks(ledger, estimated, outlines)
        failed = [job for job in moved if moves[job].counts[State.FAILED] and not (job in before and before[job].error)]
        errors = ledger.live_jobs.failures(failed)
        return {
            job: self._show_job(job, outlines[job], found, outlooks.get(job), errors.get(job))
            for job, found in moves.items()
        }

    def _show_job(
        self, job_id: str, outline: JobOutline, moves: JobMoves, outlook: Outlook | None, error: str | None
    ) -> _ShownJob:
        """Return a job as it is now; without a new outlook or error, it has those that listeners know."""
        earlier = self._shown.get(job_id)
        if moves.state in TERMINAL:
            outlook = Outlook()
        elif outlook is None:
            outlook = earlier.outlook if earlier else Outlook()
        error = error or (earlier.error if earlier else None)
        if earlier and (earlier.moves, earlier.outlook, earlier.error) == (moves, outlook, error):
            return earlier
        body = job_progress(job_id, outline, moves, outlook=outlook, error=error)
        return _ShownJob(outline, moves, outlook, error, Line.of(body))

    def _sort_out(self, moves: Mapping[str, JobMoves]) -> None:
        """Move jobs that have ended to the others that have, and drop those that do not exist any more."""
        for job in self._chosen:
            if job not in moves:
                self._open.pop(job, None)
                self._ended.pop(job, None)
        for job, found in moves.items():
            if found.finished_ms is not None and self._open.pop(job, None) is not None:
                self._ended[job] = found.finished_ms
        self._forget_early_ends()

    def _forget_early_ends(self) -> None:
        last = sorted(self._ended, key=lambda job: (self._ended[job], job))[-ENDED_JOBS:]
        self._ended = {job: self._ended[job] for job in last}

    def _replace(self, shown: dict[str, _ShownJob], fleet: Line) -> ServerSentEvent | None:
        """Take over a state and return how it differs from the last one."""
        before, last_fleet, was_loaded = self._shown, self._fleet, self.is_loaded
        self._shown, self._fleet, self.is_loaded = shown, fleet, True
        changed = [job for job in shown if job not in before or before[job].line.text != shown[job].line.text]
        removed = [job for job in before if job not in shown]
        if not was_loaded or not (changed or removed or fleet.text != last_fleet.text):
            return None
        parts = {
            "jobs": self._texts(changed) if changed else None,
            "removed": json.dumps(removed) if removed else None,
            "fleet": fleet.text if fleet.text != last_fleet.text else None,
        }
        present = {name: text for name, text in parts.items() if text is not None}
        return event("change", _json(**present), state=self._state())

    def _texts(self, jobs: Iterable[str]) -> str:
        return "[" + ",".join(self._shown[job].line.text for job in jobs) + "]"

    def _state(self) -> str:
        return state_id([self._fleet.state, sorted((job, shown.line.state) for job, shown in self._shown.items())])


def _read_outlooks(
    ledger: Ledger, jobs: Mapping[str, JobMoves], outlines: Mapping[str, JobOutline]
) -> dict[str, Outlook]:
    unfinished = {job: moves for job, moves in jobs.items() if moves.state not in TERMINAL}
    return ledger.live_jobs.outlooks(unfinished, items={job: outlines[job].items for job in unfinished})


def _json(**members: str) -> str:
    """Join the JSON texts of members to an object."""
    return "{" + ",".join(f'"{name}":{text}' for name, text in members.items()) + "}"
