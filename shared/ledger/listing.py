"""List jobs, newest first. A page looks at a bounded number of jobs, however few of them match.

An index for each state and model would find them at once, but a process of an older version would move jobs without
updating it. Reading 100,000 jobs whole took 2 s, and 40 such readers stopped the API.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from shared.job import State
from shared.ledger.session import Session
from shared.ledger.views import JobPage, JobSummary

# Redis serves nobody else during a step; 500 jobs take it 2 ms.
_JOBS_PER_STEP = 500
# Together 2,500 jobs and 10 ms. Plain reads would cost the API 20 ms, during which it answers no poll.
_STEPS_PER_PAGE = 5

# Of the newest jobs, which are read in smaller steps until enough were found.
_NEWEST_PER_STEP: Final = 200
_NEWEST_STEPS: Final = 12

_COUNTS = (State.QUEUED, State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELED)


def read_page(
    session: Session,
    *,
    before: int | None,
    limit: int,
    state: str | None,
    model: str | None,
    tenant: str | None = None,
    with_images: bool = False,
    since_ms: int | None = None,
    until_ms: int | None = None,
) -> JobPage:
    """Read the newest jobs that match, older than the cursor `before` (exclusive).

    Args:
        with_images: only jobs of which an image is finished.
        since_ms, until_ms: only jobs that were accepted from the first to, not including, the second.

    A tenant's jobs have an index of their own. While a process of an earlier version accepts jobs, which it does not
    put into that index, the page looks at the jobs of all tenants.

    The page is short, or even empty, if too few of the jobs that it looks at match; `next_before` still leads on.
    """
    found: list[JobSummary] = []
    # One more than the page holds, to learn whether there is a next page.
    wanted = limit + 1
    filters = {
        "state": state,
        "model": model,
        "tenant": tenant,
        "with_images": with_images or None,
        "since_ms": since_ms,
        "until_ms": until_ms,
    }
    scan = wanted if all(value is None for value in filters.values()) else _JOBS_PER_STEP
    for _ in range(_STEPS_PER_PAGE):
        last_seen, rows = session.run("list_jobs", before=before, limit=wanted - len(found), scan=scan, **filters)
        found += (_summary(row) for row in rows)
        if len(found) == wanted:
            # The next page begins with the job that is one too many.
            return JobPage(jobs=tuple(found[:limit]), next_before=found[limit].order + 1)
        if last_seen is None:
            return JobPage(jobs=tuple(found), next_before=None)
        # From the last job seen: jobs accepted since do not shift the pages.
        before = int(last_seen)
    return JobPage(jobs=tuple(found), next_before=before)


def iterate_newest(session: Session, *, tenant: str | None, after: int | None) -> Iterator[JobSummary]:
    """Yield the newest jobs, 2,400 at most, that were accepted after the accept order `after`."""
    before: int | None = None
    for _ in range(_NEWEST_STEPS):
        last_seen, rows = session.run(
            "list_jobs", before=before, after=after, limit=_NEWEST_PER_STEP, scan=_NEWEST_PER_STEP, tenant=tenant
        )
        yield from (_summary(row) for row in rows)
        if last_seen is None:
            return
        before = int(last_seen)


def _summary(row: list[Any]) -> JobSummary:
    job_id, order, state, model, items, *counts, accepted_ms, started_ms, finished_ms = row
    return JobSummary(
        job_id=job_id,
        model=model,
        state=State(state),
        order=int(order),
        items=int(items),
        counts={name: int(count) for name, count in zip(_COUNTS, counts, strict=True)},
        accepted_ms=int(accepted_ms),
        started_ms=None if started_ms is None else int(started_ms),
        finished_ms=None if finished_ms is None else int(finished_ms),
    )
