"""Read jobs and their items from Redis, with plain reads that change nothing and may see a script's step half way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.job import ItemError, ItemResult, Progress, SpecReport, State, StepsReport
from shared.keys.record import DEFAULT_TENANT
from shared.ledger import keys
from shared.ledger.bulk_reads import read_each
from shared.ledger.connection import Client
from shared.ledger.job_texts import JobTexts
from shared.ledger.outlook import Forecaster, Outlook
from shared.ledger.views import EndedItem, FinishedImage, ItemView, JobSummary, JobView, WebhookView

_Report = TypeVar("_Report", bound=BaseModel)

#: The error of an item that its job's deadline canceled. Not stored, since it is the same for each of them.
DEADLINE_EXCEEDED = ItemError(
    code="DEADLINE_EXCEEDED",
    message="deadline_s passed while this image waited for a worker; submit it again with more time",
    retryable=True,
)


def read_job(
    client: Client, job_id: str, *, forecaster: Forecaster, now_ms: int | None = None, tenant: str | None = None
) -> JobView | None:
    """Read a job with all its items; None if it does not exist or is being forgotten.

    Args:
        forecaster: estimates when the job gets its turn and when it ends.
        now_ms: replaces Redis' clock.
        tenant: a job of another tenant does not exist for the caller; None reads that of any.
    """
    with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.job(job_id)).time()
        job, (seconds, micros) = pipe.execute()
    # Before its items are read: another tenant's job takes as long as one that does not exist.
    if not job or tenant not in (None, job.get("tenant")):
        return None
    if now_ms is None:
        now_ms = int(seconds) * 1000 + int(micros) // 1000
    with client.pipeline(transaction=False) as pipe:
        for index in range(int(job["items"])):
            pipe.hgetall(keys.item(f"{job_id}:{index}"))
        JobTexts.request(pipe, job_id)
        *records, specs, results, parts = pipe.execute()
    # The job may be forgotten between the two reads.
    if not all(records):
        return None
    texts = JobTexts.read([specs, results, parts])
    items = tuple(_item(record, texts) for record in records)
    outlook = Outlook() if "finished_ms" in job else forecaster.forecast(records, now_ms=now_ms)
    return JobView(
        job_id=job_id,
        model=job["model"],
        state=State(job["state"]),
        cancel_requested=job["cancel"] == "1",
        record=json.loads(job["record"]),
        accepted_ms=int(job["accepted_ms"]),
        started_ms=_int_or_none(job.get("started_ms")),
        finished_ms=_int_or_none(job.get("finished_ms")),
        queue_position=outlook.queue_position,
        eta_s=outlook.eta_s,
        eta_range_s=outlook.eta_range_s,
        items=items,
        webhook=read_webhook(job),
        tenant=job.get("tenant", DEFAULT_TENANT),
        deadline_ms=_int_or_none(job.get("deadline_ms")),
        trace=job.get("trace", ""),
        sweep_id=job.get("sweep"),
    )


def read_items(client: Client, spans: Sequence[tuple[str, range]]) -> list[tuple[ItemView, ...]] | None:
    """Read some items of several jobs, in a few round trips; None if one of them does not exist.

    Args:
        spans: ids of jobs, each with the indices of its items.
    """
    commands: list[tuple[Any, ...]] = []
    for job_id, indices in spans:
        commands += [("hgetall", keys.item(f"{job_id}:{index}")) for index in indices]
        # After the items: what an item refers to was stored before it.
        commands += [("lrange", key(job_id), 0, -1) for key in (keys.specs, keys.results, keys.result_parts)]
    replies = iter(read_each(client, commands))
    read: list[tuple[ItemView, ...]] = []
    for _, indices in spans:
        records = [next(replies) for _ in indices]
        texts = JobTexts.read([next(replies), next(replies), next(replies)])
        if not all(records):
            return None
        read.append(tuple(_item(record, texts) for record in records))
    return read


def read_outlook(client: Client, job_id: str, *, items: int, forecaster: Forecaster, now_ms: int) -> Outlook:
    """Return the outlook of a job by its first and its last item, without reading the others."""
    with client.pipeline(transaction=False) as pipe:
        for index in sorted({0, items - 1}):
            pipe.hgetall(keys.item(f"{job_id}:{index}"))
        records = [record for record in pipe.execute() if record]
    return forecaster.forecast(records, now_ms=now_ms)


def read_webhook(job: Mapping[str, str]) -> WebhookView | None:
    """Read the delivery of a job's messages from the fields of its hash; None if it has no webhook."""
    if "webhook" not in job and "item_webhook" not in job:
        return None
    state = job.get("webhook_state", "skipped")
    # Not stored: an API of an earlier version could not show such a state.
    if "finished_ms" in job and "webhook_states" in job and job["state"] not in job["webhook_states"].split(","):
        state = "skipped"
    return WebhookView(
        state,
        int(job.get("webhook_attempts", 0)),
        job.get("webhook_error", ""),
        items_waiting=int(job.get("item_messages", 0)),
        items_failed=int(job.get("item_messages_failed", 0)),
        items_error=job.get("item_webhook_error", ""),
    )


def read_ended_item(client: Client, job_id: str, index: int) -> EndedItem | None:
    """Read one item that succeeded or failed, without the other items of its job; None if it does not exist."""
    with client.pipeline(transaction=False) as pipe:
        pipe.hmget(keys.job(job_id), "model", "tenant", "trace").hgetall(keys.item(f"{job_id}:{index}"))
        (model, tenant, trace), record = pipe.execute()
        if model is None or not record:
            return None
        texts = JobTexts([], {})
        if record["state"] == State.FAILED:
            # Without the prompts, which no message states: each of 1,000 messages would read all of them.
            JobTexts.request_outcomes(pipe, job_id)
            texts = JobTexts.read([[], *pipe.execute()])
    return EndedItem(job_id, model, tenant or DEFAULT_TENANT, _item(record, texts), trace or "")


def read_finished(
    job: JobSummary, index: int, item: Mapping[str, str], texts: JobTexts, *, tenant: str, preset: str | None
) -> FinishedImage | None:
    """Build one finished image; None if the item has none, or one that this version cannot read.

    Args:
        item: the fields `state`, `spec` and `result` of its record, as far as it has them.
    """
    if item.get("state") != State.SUCCEEDED:
        return None
    result = _parse_or_none(ItemResult, texts.outcome(State.SUCCEEDED, index, item))
    if result is None:
        return None
    spec = _parse_or_none(SpecReport, texts.spec(index, item))
    return FinishedImage(job, tenant, preset, index, spec, result)


def _item(item: Mapping[str, str], texts: JobTexts) -> ItemView:
    index, state = int(item["index"]), State(item["state"])
    spec_text, outcome = texts.spec(index, item), texts.outcome(state, index, item)
    # The ledger may have dropped the other parameters of a canceled item.
    spec = None if state is State.CANCELED else _parse_or_none(SpecReport, spec_text)
    steps = _parse_or_none(StepsReport, spec_text) if state is State.CANCELED else spec
    return ItemView(
        index=index,
        state=state,
        attempt=int(item["attempt"]),
        fence=int(item["fence"]),
        spec=spec,
        steps=steps.num_inference_steps if steps else None,
        progress=_parse_or_none(Progress, item.get("progress")),
        result=_parse_or_none(ItemResult, outcome) if state is State.SUCCEEDED else None,
        error=_late(item) or (_parse_or_none(ItemError, outcome) if state is State.FAILED else None),
        queued_ms=int(item["queued_ms"]),
        started_ms=_int_or_none(item.get("started_ms")),
        finished_ms=_int_or_none(item.get("finished_ms")),
        slot=item.get("slot"),
        why=item.get("why"),
    )


def _late(item: Mapping[str, str]) -> ItemError | None:
    return DEADLINE_EXCEEDED if "late" in item else None


def _parse_or_none(kind: type[_Report], text: str | None) -> _Report | None:
    """Parse one part of an item; None if another version wrote it and this version cannot read it."""
    # The other parts are still shown during a rolling upgrade.
    try:
        return None if text is None else kind.model_validate_json(text)
    except ValidationError:
        return None


def _int_or_none(value: str | None) -> int | None:
    return None if value is None else int(value)
