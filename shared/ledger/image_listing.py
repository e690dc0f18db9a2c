"""List finished images: the newest job first, and the images of a job in the order of its prompts.

A page looks at a bounded number of jobs and images, however few of them match: no index by prompt or seed is kept,
which each commit would pay for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.job import State
from shared.keys.record import DEFAULT_TENANT
from shared.ledger import keys, listing
from shared.ledger.bulk_reads import read_each
from shared.ledger.job_reader import read_finished
from shared.ledger.job_texts import JobTexts
from shared.ledger.session import Session
from shared.ledger.views import FinishedImage, ImageCursor, ImagePage, JobSummary

# Items that a page with a filter looks at in one step, and the steps of a page: 1,000 images take 60 ms.
_ITEMS_PER_STEP: Final = 250
_STEPS_PER_PAGE: Final = 4
# A line of the listing takes Redis 10 us, during which it serves nobody else.
_MOST_JOBS_PER_STEP: Final = 100

_ITEM_FIELDS: Final = ("state", "spec", "result")
_JOB_FIELDS: Final = ("state", "model", "items", "succeeded", "accepted_ms", "finished_ms")


@dataclass(frozen=True)
class ImageFilter:
    """The images that a listing returns.

    Attributes:
        adapter: a part of the path of one of its adapters, in any case; empty for every image.
        prompt: a part of its prompt, likewise.
        job_id: None for those of every job.
        tenant, model: None for those of every tenant and model.
        since_ms, until_ms: of jobs that were accepted from the first to, not including, the second.
    """

    adapter: str = ""
    prompt: str = ""
    seed: int | None = None
    job_id: str | None = None
    tenant: str | None = None
    model: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def reads_items(self) -> bool:
        """Whether only the items themselves show what matches."""
        return bool(self.adapter or self.prompt) or self.seed is not None

    def matches(self, image: FinishedImage) -> bool:
        """Return whether an image matches; one whose parameters cannot be read matches no prompt and no seed."""
        spec = image.spec
        if self.seed is not None and (spec is None or spec.seed != self.seed):
            return False
        if self.prompt and (spec is None or self.prompt.casefold() not in spec.prompt.casefold()):
            return False
        adapter = self.adapter.casefold()
        return not adapter or any(adapter in report.path.casefold() for report in image.result.adapters)


@dataclass(frozen=True)
class _Span:
    """Items of one job, from `start` up to, not including, `stop`."""

    job: JobSummary
    start: int
    stop: int


class ImageListing:
    """The finished images in one ledger."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def page(self, wanted: ImageFilter, *, cursor: ImageCursor | None, limit: int) -> ImagePage:
        """Read the newest images that match, from a cursor on.

        The page is short, or even empty, if too few of the images that it looks at match; `next_cursor` still leads on.
        """
        found: list[FinishedImage] = []
        items_at_once = _ITEMS_PER_STEP if wanted.reads_items else limit
        for _ in range(_STEPS_PER_PAGE):
            spans, next_cursor = self._spans(wanted, cursor, items_at_once)
            for image, after in self._images(spans):
                if len(found) == limit:
                    return ImagePage(tuple(found), cursor)
                cursor = after
                if wanted.matches(image):
                    found.append(image)
            cursor = next_cursor
            if cursor is None or len(found) == limit:
                break
        return ImagePage(tuple(found), cursor)

    def _spans(
        self, wanted: ImageFilter, cursor: ImageCursor | None, items: int
    ) -> tuple[list[_Span], ImageCursor | None]:
        """Return the next items to look at, this many at most, and the cursor behind them, None at the end."""
        jobs, next_before = self._jobs(wanted, cursor, limit=min(items, _MOST_JOBS_PER_STEP))
        spans: list[_Span] = []
        for job in jobs:
            start = cursor.index if cursor is not None and cursor.order == job.order else 0
            stop = min(job.items, start + items)
            if start < stop:
                spans.append(_Span(job, start, stop))
                items -= stop - start
            if not items:
                is_last = stop == job.items and job is jobs[-1] and next_before is None
                return spans, None if is_last else ImageCursor(job.order, stop)
        return spans, None if next_before is None else ImageCursor(next_before - 1, 0)

    def _jobs(
        self, wanted: ImageFilter, cursor: ImageCursor | None, *, limit: int
    ) -> tuple[Sequence[JobSummary], int | None]:
        if wanted.job_id is not None:
            job = self._one_job(wanted, wanted.job_id)
            return [] if job is None else [job], None
        page = listing.read_page(
            self._session,
            # The cursor's own job may have more images.
            before=None if cursor is None else cursor.order + 1,
            limit=limit,
            state=None,
            model=wanted.model,
            tenant=wanted.tenant,
            with_images=True,
            since_ms=wanted.since_ms,
            until_ms=wanted.until_ms,
        )
        return page.jobs, page.next_before

    def _one_job(self, wanted: ImageFilter, job_id: str) -> JobSummary | None:
        with self._session.commands():
            tenant, *values = self._session.redis.hmget(keys.job(job_id), "tenant", *_JOB_FIELDS)
        state, model, items, succeeded, accepted_ms, finished_ms = values
        if state is None or wanted.tenant not in (None, tenant) or wanted.model not in (None, model):
            return None
        if not (wanted.since_ms or 0) <= int(accepted_ms) < (wanted.until_ms or float("inf")):
            return None
        return JobSummary(
            job_id=job_id,
            model=model,
            state=State(state),
            # Its cursors are of this job alone.
            order=0,
            items=int(items),
            counts={State.SUCCEEDED: int(succeeded)},
            accepted_ms=int(accepted_ms),
            started_ms=None,
            finished_ms=None if finished_ms is None else int(finished_ms),
        )

    def _images(self, spans: Sequence[_Span]) -> Iterator[tuple[FinishedImage, ImageCursor]]:
        """Yield the finished images of some items, each with the cursor behind it."""
        with self._session.commands():
            replies = iter(read_each(self._session.redis, _commands(spans)))
        for span in spans:
            tenant, record = next(replies)
            preset = json.loads(record).get("preset") if record else None
            # A pipeline may answer while the job is forgotten.
            items = [next(replies) for _ in range(span.start, span.stop)]
            texts = JobTexts.read([next(replies), next(replies), next(replies)])
            for index, values in enumerate(items, start=span.start):
                item = {name: text for name, text in zip(_ITEM_FIELDS, values, strict=True) if text is not None}
                image = read_finished(span.job, index, item, texts, tenant=tenant or DEFAULT_TENANT, preset=preset)
                if image is not None:
                    yield image, ImageCursor(span.job.order, index + 1)


def _commands(spans: Sequence[_Span]) -> Iterator[tuple[Any, ...]]:
    """Yield the reads of `_images`, in its order."""
    for span in spans:
        job_id = span.job.job_id
        yield "hmget", keys.job(job_id), ["tenant", "record"]
        for index in range(span.start, span.stop):
            yield "hmget", keys.item(f"{job_id}:{index}"), list(_ITEM_FIELDS)
        # After the items: what an item or a line of `results` refers to was stored before it.
        for key in (keys.specs(job_id), keys.results(job_id), keys.result_parts(job_id)):
            yield "lrange", key, 0, -1
