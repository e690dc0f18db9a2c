"""Read what moves of many jobs at once, for those who watch them.

A watcher knows the rest of a job from an earlier read. The cost follows the watched jobs and a bounded number of
running items, whatever else the queue and the fleet hold.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from shared.job import ItemError, Progress, SpecReport, State
from shared.keys.record import DEFAULT_TENANT
from shared.ledger import keys, listing
from shared.ledger.bulk_reads import in_parts, read_each
from shared.ledger.job_reader import read_webhook
from shared.ledger.outlook import Forecaster, Outlook
from shared.ledger.session import Session
from shared.ledger.spec_parts import first_line, join_texts
from shared.ledger.usage_rows import OTHER
from shared.ledger.views import JobSummary, WebhookView

# Of a larger fleet, each reading finds the running items whose leases end first.
_LEASES_READ: Final = 1000
# Redis serves nobody else during one step, which takes it 1 ms.
_JOBS_PER_STEP: Final = 200
# Running items whose ends an outlook compares.
_RUNNING_LOOKED_AT: Final = 16

logger = logging.getLogger("flux2.ledger.live_jobs")

_COUNTS: Final = (State.QUEUED, State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELED)
_JOB_FIELDS: Final = (
    *("state", "cancel", "started_ms", "finished_ms", *(state.value for state in _COUNTS)),
    *("webhook", "item_webhook", "webhook_states", "webhook_state", "webhook_attempts", "webhook_error"),
    *("item_messages", "item_messages_failed", "item_webhook_error"),
)
_ITEM_FIELDS: Final = ("state", "attempt", "progress")


@dataclass(frozen=True)
class ItemMoves:
    """What moves of an item; see `ItemView` for the fields."""

    state: State
    attempt: int
    progress: Progress | None


@dataclass(frozen=True)
class JobMoves:
    """What moves of a job; see `JobView` for the fields.

    Attributes:
        counts: items by state.
        items: those that were asked for, by index.
    """

    state: State
    cancel_requested: bool
    started_ms: int | None
    finished_ms: int | None
    counts: Mapping[State, int]
    webhook: WebhookView | None
    items: Mapping[int, ItemMoves]


@dataclass(frozen=True)
class JobOutline:
    """What does not move of a job.

    Attributes:
        items: number of its items.
        adapters: names of its adapters, with ` + ` between them.
        spec: parameters of its first item; None if they are dropped or unreadable.
    """

    model: str
    tenant: str
    priority: int
    adapters: str
    items: int
    accepted_ms: int
    deadline_ms: int | None
    spec: SpecReport | None


class LiveJobs:
    """The jobs of one Redis, for those who watch them; each call may raise `LedgerUnavailable`."""

    def __init__(self, session: Session, forecaster: Forecaster) -> None:
        self._session = session
        self._forecaster = forecaster

    def owners(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Return the tenant of each job; one that does not exist is absent."""
        with self._session.commands():
            found = read_each(
                self._session.redis, (("hmget", keys.job(job_id), "state", "tenant") for job_id in job_ids)
            )
        return {
            job_id: tenant or DEFAULT_TENANT
            for job_id, (state, tenant) in zip(job_ids, found, strict=True)
            if state is not None
        }

    def sequence(self) -> int:
        """Return the accept order of the newest item."""
        with self._session.commands():
            return int(self._session.redis.get(keys.SEQUENCE) or 0)

    def running(self) -> dict[str, list[int]]:
        """Return the indices of the running items by job, of a thousand items at most."""
        with self._session.commands():
            item_ids = self._session.redis.zrange(keys.LEASES, 0, _LEASES_READ - 1)
        indices: dict[str, list[int]] = {}
        for item_id in item_ids:
            job_id, _, index = item_id.rpartition(":")
            indices.setdefault(job_id, []).append(int(index))
        return indices

    def newest(self, *, tenant: str | None, after: int | None) -> Iterator[JobSummary]:
        """Yield the newest jobs of a tenant, or of all, that were accepted after an accept order; 2,400 at most."""
        return listing.iterate_newest(self._session, tenant=tenant, after=after)

    def read(self, items: Mapping[str, Collection[int]]) -> dict[str, JobMoves | None]:
        """Read what moves of jobs and of some of their items; None for one that does not exist or cannot be read.

        Args:
            items: the indices of the items, by job.
        """
        found: dict[str, JobMoves | None] = {}
        for part in in_parts(list(items.items()), _JOBS_PER_STEP):
            jobs = [(job_id, sorted(indices)) for job_id, indices in part]
            rows = self._session.run("live_jobs", jobs=jobs, job_fields=_JOB_FIELDS, item_fields=_ITEM_FIELDS)
            for (job_id, indices), (job, records) in zip(jobs, rows, strict=True):
                found[job_id] = _moves_or_none(job_id, job, dict(zip(indices, records, strict=True)))
        return found

    def outlines(self, job_ids: Sequence[str]) -> dict[str, JobOutline]:
        """Read what does not move of jobs; one that does not exist is absent."""
        names = ("model", "tenant", "priority", "adapters", "items", "accepted_ms", "deadline_ms")
        commands = [
            command
            for job_id in job_ids
            for command in (
                ("hmget", keys.job(job_id), names),
                ("lrange", keys.specs(job_id), 0, 1),
                ("hget", keys.item(f"{job_id}:0"), "spec"),
            )
        ]
        with self._session.commands():
            replies = read_each(self._session.redis, commands)
        rows = zip(job_ids, replies[::3], replies[1::3], replies[2::3], strict=True)
        return {job_id: _outline(job, texts, whole) for job_id, job, texts, whole in rows if job[0] is not None}

    def outlooks(self, jobs: Mapping[str, JobMoves], *, items: Mapping[str, int]) -> dict[str, Outlook]:
        """Estimate the outlook of unfinished jobs from a few items of each.

        Args:
            items: number of items of each job.
        """
        if not jobs:
            return {}
        chosen = [(job_id, index) for job_id, moves in jobs.items() for index in _deciding_items(moves, items[job_id])]
        now_ms = self._session.now_ms()
        with self._session.commands():
            records = read_each(
                self._session.redis, (("hgetall", keys.item(f"{job}:{index}")) for job, index in chosen)
            )
            by_job: dict[str, list[Mapping[str, str]]] = {job_id: [] for job_id in jobs}
            for (job_id, _), record in zip(chosen, records, strict=True):
                if record:
                    by_job[job_id].append(record)
            outlooks = self._forecaster.forecast_each(list(by_job.values()), now_ms=now_ms)
        return dict(zip(by_job, outlooks, strict=True))

    def failures(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Return the message of the first failure of each job in the compact form; absent without one."""
        with self._session.commands():
            found = read_each(self._session.redis, (("lrange", keys.result_parts(job), 0, -1) for job in job_ids))
        messages = {job_id: _first_error(parts) for job_id, parts in zip(job_ids, found, strict=True)}
        return {job_id: message for job_id, message in messages.items() if message is not None}


def _moves_or_none(
    job_id: str, job: Sequence[str | None], items: Mapping[int, Sequence[str | None]]
) -> JobMoves | None:
    try:
        return _moves(job, items)
    except (KeyError, ValueError):
        # Another version wrote it, and the other jobs of the reading may be other tenants'.
        logger.exception("the record of a job cannot be read, so nobody can watch it", extra={"job": job_id})
        return None


def _moves(job: Sequence[str | None], items: Mapping[int, Sequence[str | None]]) -> JobMoves | None:
    fields = {name: value for name, value in zip(_JOB_FIELDS, job, strict=True) if value is not None}
    if "state" not in fields:
        return None
    return JobMoves(
        state=State(fields["state"]),
        cancel_requested=fields["cancel"] == "1",
        started_ms=_int_or_none(fields.get("started_ms")),
        finished_ms=_int_or_none(fields.get("finished_ms")),
        counts={state: int(fields[state]) for state in _COUNTS},
        webhook=read_webhook(fields),
        items={index: _item_moves(*record) for index, record in items.items() if record[0] is not None},
    )


def _item_moves(state: str | None, attempt: str | None, progress: str | None) -> ItemMoves:
    return ItemMoves(State(state or ""), int(attempt or 0), _progress(progress))


def _progress(text: str | None) -> Progress | None:
    try:
        return None if text is None else Progress.model_validate_json(text)
    except ValidationError:
        # Another version wrote it.
        return None


def _outline(job: Sequence[str | None], texts: Sequence[str], whole: str | None) -> JobOutline:
    model, tenant, priority, adapters, items, accepted_ms, deadline_ms = job
    text = whole or (join_texts(map(first_line, texts)) if texts else None)
    try:
        spec = None if text is None else SpecReport.model_validate_json(text)
    except ValidationError:
        spec = None
    return JobOutline(
        model=model or "",
        tenant=tenant or DEFAULT_TENANT,
        priority=int(priority or 0),
        adapters=adapters or OTHER,
        items=int(items or 0),
        accepted_ms=int(accepted_ms or 0),
        deadline_ms=_int_or_none(deadline_ms),
        spec=spec,
    )


def _deciding_items(moves: JobMoves, items: int) -> list[int]:
    """Return the indices of the items that start next and end last, because items start in their order."""
    queued = moves.counts[State.QUEUED]
    if queued:
        return sorted({items - queued, items - 1})
    return sorted(index for index, item in moves.items.items() if item.state is State.RUNNING)[-_RUNNING_LOOKED_AT:]


def _first_error(parts: Sequence[str]) -> str | None:
    for text in parts:
        try:
            return ItemError.model_validate_json(text).message
        except ValidationError:
            # A part of results.
            continue
    return None


def _int_or_none(value: str | None) -> int | None:
    return None if value is None else int(value)
