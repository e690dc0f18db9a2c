"""What can be read from the ledger. Reading changes nothing and needs no script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.job import ItemError, ItemResult, Progress, SpecReport, State
from shared.ledger import keys
from shared.ledger.connection import Client
from shared.ledger.workers import SLOT_TTL_MS, read_slots

# Jobs looked at in one step of a filtered listing.
_SCAN = 200

_Told = TypeVar("_Told", bound=BaseModel)


@dataclass(frozen=True)
class ItemView:
    """One item as it stands; times in ms since the epoch.

    What another version stored in words that this one does not know is None, as what is not there yet.
    """

    index: int
    state: State
    attempt: int
    fence: int
    spec: SpecReport | None
    progress: Progress | None
    result: ItemResult | None
    error: ItemError | None
    queued_ms: int
    started_ms: int | None
    finished_ms: int | None
    slot: str | None


@dataclass(frozen=True)
class WebhookView:
    """How far the message about a job's end has come: `waiting`, `delivered` or `failed`."""

    state: str
    attempts: int
    error: str


@dataclass(frozen=True)
class JobView:
    """One job as it stands.

    Attributes:
        record: what the API stored at accept.
        queue_position: queued items ahead of the job's first queued one, in accept order; None when none is queued.
        eta_s: rough seconds until the last item ends, from the pace of recent items; None while unknown or ended.
    """

    job_id: str
    model: str
    state: State
    cancel_requested: bool
    record: Mapping[str, Any]
    accepted_ms: int
    started_ms: int | None
    finished_ms: int | None
    queue_position: int | None
    eta_s: float | None
    items: tuple[ItemView, ...]
    webhook: WebhookView | None = None


@dataclass(frozen=True)
class JobSummary:
    """One line of the listing."""

    job_id: str
    model: str
    state: State
    order: int
    items: int
    counts: Mapping[State, int]
    accepted_ms: int
    started_ms: int | None
    finished_ms: int | None


@dataclass(frozen=True)
class JobPage:
    """A page of the listing; `next_before` continues it, None at its end."""

    jobs: tuple[JobSummary, ...]
    next_before: int | None


def read_job(client: Client, job_id: str, *, now_ms: int | None = None) -> JobView | None:
    """Read a job with all its items; `now_ms` replaces Redis' clock. None when it is not there, or not all of it."""
    with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.job(job_id)).time()
        job, (seconds, micros) = pipe.execute()
    if not job:
        return None
    if now_ms is None:
        now_ms = int(seconds) * 1000 + int(micros) // 1000
    with client.pipeline(transaction=False) as pipe:
        for index in range(int(job["items"])):
            pipe.hgetall(keys.item(f"{job_id}:{index}"))
        raws = pipe.execute()
    if not all(raws):  # forgotten between the two reads
        return None
    items = tuple(_item(raw) for raw in raws)
    position, eta_s = None, None
    if "finished_ms" not in job:
        position, eta_s = _outlook(client, job["pool"], job_id, items, now_ms)
    return JobView(
        job_id=job_id,
        model=job["model"],
        state=State(job["state"]),
        cancel_requested=job["cancel"] == "1",
        record=json.loads(job["record"]),
        accepted_ms=int(job["accepted_ms"]),
        started_ms=_int(job.get("started_ms")),
        finished_ms=_int(job.get("finished_ms")),
        queue_position=position,
        eta_s=eta_s,
        items=items,
        webhook=_webhook(job),
    )


def read_page(client: Client, *, before: int | None, limit: int, state: str | None, model: str | None) -> JobPage:
    found: list[JobSummary] = []
    for summary in _newest_first(client, before):
        if (state and summary.state != state) or (model and summary.model != model):
            continue
        if len(found) == limit:
            return JobPage(jobs=tuple(found), next_before=found[-1].order)
        found.append(summary)
    return JobPage(jobs=tuple(found), next_before=None)


def _newest_first(client: Client, before: int | None) -> Iterator[JobSummary]:
    top = "+inf" if before is None else f"({before}"
    while True:
        page = client.zrange(keys.JOBS, top, "-inf", desc=True, byscore=True, offset=0, num=_SCAN, withscores=True)
        if not page:
            return
        with client.pipeline(transaction=False) as pipe:
            for job_id, _ in page:
                pipe.hgetall(keys.job(job_id))
            records = pipe.execute()
        for (job_id, order), raw in zip(page, records, strict=True):
            if raw:
                yield _summary(job_id, int(order), raw)
        top = f"({int(page[-1][1])}"


def _webhook(job: Mapping[str, str]) -> WebhookView | None:
    if "webhook" not in job:
        return None
    return WebhookView(job["webhook_state"], int(job.get("webhook_attempts", 0)), job.get("webhook_error", ""))


def _summary(job_id: str, order: int, raw: Mapping[str, str]) -> JobSummary:
    return JobSummary(
        job_id=job_id,
        model=raw["model"],
        state=State(raw["state"]),
        order=order,
        items=int(raw["items"]),
        counts={state: int(raw[state]) for state in State},
        accepted_ms=int(raw["accepted_ms"]),
        started_ms=_int(raw.get("started_ms")),
        finished_ms=_int(raw.get("finished_ms")),
    )


def _item(raw: Mapping[str, str]) -> ItemView:
    return ItemView(
        index=int(raw["index"]),
        state=State(raw["state"]),
        attempt=int(raw["attempt"]),
        fence=int(raw["fence"]),
        spec=_told(SpecReport, raw.get("spec")),
        progress=_told(Progress, raw.get("progress")),
        result=_told(ItemResult, raw.get("result")),
        error=_told(ItemError, raw.get("error")),
        queued_ms=int(raw["queued_ms"]),
        started_ms=_int(raw.get("started_ms")),
        finished_ms=_int(raw.get("finished_ms")),
        slot=raw.get("slot"),
    )


def _told(kind: type[_Told], text: str | None) -> _Told | None:
    """Read what is told to people; a part that another version wrote and this one cannot read is left out."""
    try:
        return None if text is None else kind.model_validate_json(text)
    except ValidationError:
        return None


def _outlook(
    client: Client, pool: str, job_id: str, items: tuple[ItemView, ...], now_ms: int
) -> tuple[int | None, float | None]:
    """Return an unfinished job's place in the queue and the seconds until it ends, each None where it is unknown."""
    first = next((item.index for item in items if item.state is State.QUEUED), "none")
    with client.pipeline(transaction=False) as pipe:
        # None as well when the item was claimed between the two reads.
        pipe.zrank(keys.pending(pool), f"{job_id}:{first}").get(keys.pace(pool))
        position, pace = pipe.execute()
    if pace is None:
        return position, None
    slots = max(1, sum(pool in slot.pools for slot in read_slots(client, since_ms=now_ms - SLOT_TTL_MS)))
    waiting = sum(item.state is State.QUEUED for item in items)
    running = [
        max(0, int(pace) - (now_ms - item.started_ms))
        for item in items
        if item.state is State.RUNNING and item.started_ms is not None
    ]
    queue_ms = ((position or 0) + waiting) * int(pace) / slots
    return position, round((queue_ms + max(running, default=0)) / 1000, 1)


def _int(value: str | None) -> int | None:
    return None if value is None else int(value)
