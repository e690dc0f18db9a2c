"""The sweeps in one Redis: each is the record of several jobs that were accepted together.

What moves is read from the jobs, so that workers of an earlier version, which know no sweeps, render them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.job import State
from shared.ledger import job_reader, keys
from shared.ledger.acceptance import AcceptedSweep, Submission, SweepSubmission
from shared.ledger.acceptor import Acceptor
from shared.ledger.bulk_reads import read_each
from shared.ledger.key_use import KeyUse
from shared.ledger.live_jobs import JobMoves, LiveJobs
from shared.ledger.outlook import Outlook
from shared.ledger.session import Session
from shared.ledger.views import ItemView

# Of a listing; they take Redis 13 ms, in steps.
_JOBS_PER_PAGE: Final = 2500
# Jobs whose ends an outlook compares: those that were queued last.
_JOBS_LOOKED_AT: Final = 16
# In one step, which takes Redis some 20 ms.
_ITEMS_PER_CANCEL: Final = 1000
_FIELDS: Final = ("tenant", "model", "accepted_ms", "jobs")


@dataclass(frozen=True)
class SweepView:
    """One sweep with what moves of its jobs; times in ms since the epoch.

    Attributes:
        record: JSON text that the API stored when it accepted the sweep; empty in a listing.
        order: accept order of its last item, in a listing.
        jobs: by id, in the order in which they were queued.
    """

    sweep_id: str
    tenant: str
    model: str
    record: str
    accepted_ms: int
    order: int
    jobs: Mapping[str, JobMoves]

    @property
    def counts(self) -> dict[State, int]:
        """Number of images by state."""
        return {state: sum(job.counts[state] for job in self.jobs.values()) for state in State}

    @property
    def state(self) -> State:
        """As that of a job is derived from its items."""
        counts = self.counts
        if counts[State.QUEUED] + counts[State.RUNNING]:
            return State.QUEUED if self.started_ms is None else State.RUNNING
        return next((state for state in (State.CANCELED, State.FAILED) if counts[state]), State.SUCCEEDED)

    @property
    def started_ms(self) -> int | None:
        return min((job.started_ms for job in self.jobs.values() if job.started_ms is not None), default=None)

    @property
    def finished_ms(self) -> int | None:
        """None while a job has not ended."""
        ends = [job.finished_ms for job in self.jobs.values() if job.finished_ms is not None]
        return max(ends) if len(ends) == len(self.jobs) else None


@dataclass(frozen=True)
class SweepPage:
    """A page of the listing.

    Attributes:
        sweeps: may be fewer than asked for while older ones follow.
        next_before: cursor of the next page; None on the last.
    """

    sweeps: tuple[SweepView, ...]
    next_before: int | None


@dataclass(frozen=True)
class _Stored:
    """The record of a sweep; see `SweepView`."""

    sweep_id: str
    tenant: str
    model: str
    record: str
    accepted_ms: int
    order: int
    job_ids: Sequence[str]


class Sweeps:
    """Accepts, reads and cancels sweeps; each call may raise `LedgerUnavailable`."""

    def __init__(self, session: Session, acceptor: Acceptor, live_jobs: LiveJobs) -> None:
        self._session = session
        self._acceptor = acceptor
        self._live_jobs = live_jobs

    def accept(self, sweep: SweepSubmission, jobs: Sequence[Submission], *, key: KeyUse | None = None) -> AcceptedSweep:
        """Store and queue a sweep with its jobs durably, all of it or nothing.

        Raises:
            KeyForbids, KeyLimitReached, IdempotencyKeyReused, JobTooLarge, QueueFull: see `Ledger.accept_all`.
        """
        return self._acceptor.accept_sweep(sweep, jobs, key=key)

    def find_repeat(self, idempotency_key: str, *, tenant: str, body_hash: str) -> AcceptedSweep | None:
        """Return the sweep that was accepted with this key and body; None if there is no such sweep.

        Raises:
            IdempotencyKeyReused: the key was used with another body.
        """
        sweep_id = self._acceptor.find_repeat(idempotency_key, tenant=tenant, body_hash=body_hash)
        if sweep_id is None:
            return None
        with self._session.commands():
            stored = self._session.redis.hmget(keys.sweep(sweep_id), "accepted_ms", "jobs", "record")
        return None if None in stored else AcceptedSweep.from_stored(sweep_id, *stored)

    def read(self, sweep_id: str, *, tenant: str | None = None) -> SweepView | None:
        """Read a sweep; None if it does not exist.

        Args:
            tenant: a sweep of another tenant does not exist for the caller; None reads that of any.
        """
        with self._session.commands():
            *values, record = self._session.redis.hmget(keys.sweep(sweep_id), *_FIELDS, "record")
        stored = _stored(sweep_id, 0, values, record=record or "")
        if stored is None or tenant not in (None, stored.tenant):
            return None
        return next(iter(self._with_moves([stored])), None)

    def page(self, *, before: int | None, limit: int, tenant: str | None) -> SweepPage:
        """Read the newest sweeps that were accepted before the cursor `before`, an accept order.

        The page is short if its sweeps have many jobs; `next_before` still leads on.
        """
        index = keys.SWEEPS if tenant is None else keys.tenant_sweeps(tenant)
        top = "+inf" if before is None else f"({before}"
        with self._session.commands():
            # One more than the page holds, to learn whether there is a next page.
            entries = self._session.redis.zrevrangebyscore(index, top, "-inf", start=0, num=limit + 1, withscores=True)
            rows = read_each(self._session.redis, (("hmget", keys.sweep(sweep_id), _FIELDS) for sweep_id, _ in entries))
        found, jobs, next_before = list[_Stored](), 0, None
        for number, ((sweep_id, score), values) in enumerate(zip(entries, rows, strict=True)):
            stored = _stored(sweep_id, int(score), values)
            jobs += len(stored.job_ids) if stored is not None else 0
            if number == limit or (found and jobs > _JOBS_PER_PAGE):
                next_before = int(score) + 1
                break
            if stored is not None:
                found.append(stored)
        return SweepPage(tuple(self._with_moves(found)), next_before)

    def outlook(self, sweep: SweepView) -> Outlook:
        """Estimate when the last image of a sweep ends, from the jobs that were queued last."""
        unfinished = [job_id for job_id, job in sweep.jobs.items() if job.finished_ms is None][-_JOBS_LOOKED_AT:]
        if not unfinished:
            return Outlook()
        running = self._live_jobs.running()
        moves = self._live_jobs.read({job_id: running.get(job_id, ()) for job_id in unfinished})
        jobs = {job_id: job for job_id, job in moves.items() if job is not None and job.finished_ms is None}
        outlooks = self._live_jobs.outlooks(
            jobs, items={job_id: sum(job.counts.values()) for job_id, job in jobs.items()}
        )
        known = [outlook for outlook in outlooks.values() if outlook.eta_s is not None]
        # A job without a known end says nothing about that of the sweep.
        if not known or len(known) < len(outlooks):
            return Outlook()
        return max(known, key=lambda outlook: outlook.eta_s or 0.0)

    def items(self, spans: Sequence[tuple[str, range]]) -> list[tuple[ItemView, ...]] | None:
        """Read some items of jobs, by their ids and indices; None if one does not exist any more."""
        with self._session.commands():
            return job_reader.read_items(self._session.redis, spans)

    def cancel(self, sweep: SweepView) -> None:
        """Cancel the unfinished items of a sweep's jobs; a repeat changes nothing."""
        for job_ids in _cancel_steps(sweep):
            self._session.run("cancel", jobs=job_ids, tenant=sweep.tenant)

    def _with_moves(self, stored: Sequence[_Stored]) -> list[SweepView]:
        """Read what moves of the jobs of sweeps; a sweep of which a job has been forgotten is left out."""
        moves = self._live_jobs.read({job_id: () for sweep in stored for job_id in sweep.job_ids})
        views = []
        for sweep in stored:
            jobs = {job_id: job for job_id in sweep.job_ids if (job := moves[job_id]) is not None}
            if len(jobs) == len(sweep.job_ids):
                views.append(
                    SweepView(
                        sweep_id=sweep.sweep_id,
                        tenant=sweep.tenant,
                        model=sweep.model,
                        record=sweep.record,
                        accepted_ms=sweep.accepted_ms,
                        order=sweep.order,
                        jobs=jobs,
                    )
                )
        return views


def _cancel_steps(sweep: SweepView) -> Iterator[list[str]]:
    """Yield the unfinished jobs of a sweep by the steps that cancel them."""
    step: list[str] = []
    items = 0
    # The last ones first: slots that become free would otherwise begin with a job that is about to be canceled.
    for job_id, job in reversed(list(sweep.jobs.items())):
        if job.finished_ms is None:
            size = sum(job.counts.values())
            if step and items + size > _ITEMS_PER_CANCEL:
                yield step
                step, items = [], 0
            step.append(job_id)
            items += size
    if step:
        yield step


def _stored(sweep_id: str, order: int, values: Sequence[str | None], *, record: str = "") -> _Stored | None:
    tenant, model, accepted_ms, jobs = values
    if tenant is None or model is None or accepted_ms is None or jobs is None:
        return None
    return _Stored(sweep_id, tenant, model, record, int(accepted_ms), order, json.loads(jobs))
