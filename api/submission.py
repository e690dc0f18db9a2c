"""Validate requests and store them as jobs: the steps that every submitting route shares."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fastapi import BackgroundTasks
from pydantic import BaseModel

from api.deps import Services
from api.doors.adapters import permitted_loras
from api.doors.allowances import check_kind, check_sizes, key_use
from api.doors.caller import Caller
from api.submit_cache import SubmitCache
from api.webhook_url import check_webhook_url
from api.worker_check import check_workers
from shared.adapters.validate import ValidAdapter
from shared.catalog import Model, find_model
from shared.celery_app import send_wakeups
from shared.errors import InvalidRequest
from shared.job import features_of
from shared.ledger import AcceptedJob, Submission
from shared.request import InferenceRequest, LoraItem
from shared.resolve import check_prompts, collect_warnings, reject_unsupported_fields, resolve_items
from shared.resolved_size import check_resolved_size
from shared.settings import Settings


def accept_job(
    services: Services, body: InferenceRequest, background: BackgroundTasks, *, idempotency_key: str, caller: Caller
) -> AcceptedJob:
    """Store a job durably, and wake workers after the answer has been sent.

    Raises:
        RequestError: the request cannot be served; nothing was stored.
        AccessRefused: the caller's key does not allow the request, or not now.
        QueueFull, LedgerUnavailable: see `Ledger.accept_all`; it may also raise a RequestError.
    """
    job = prepare_job(services, body, idempotency_key=idempotency_key, body_hash=hash_body(body), caller=caller)
    return store_jobs(services, [job], background, caller=caller)[0]


def open_cache(services: Services, caller: Caller) -> SubmitCache:
    """Return an empty cache for the jobs of one call of a caller."""
    return SubmitCache(
        services.ledger,
        services.settings.adapters,
        services.remote_adapters,
        intake=services.reference_intake.of(caller.upload_tenant),
    )


def prepare_job(
    services: Services,
    body: InferenceRequest,
    *,
    idempotency_key: str,
    body_hash: str,
    caller: Caller,
    cache: SubmitCache | None = None,
) -> Submission | AcceptedJob:
    """Validate and resolve a request without storing it.

    Args:
        body_hash: identity of the caller's whole body; for a replay, `body` is only a part of it.
        cache: shared by the jobs of one call; None if this is the only one.

    Returns:
        The job to store; for a repeated key and hash, the job that was accepted before.

    Raises:
        RequestError, KeyForbids: see `resolve_job`.
        LedgerUnavailable: Redis does not answer.
    """
    # First: a repeat must return its job even if an adapter file has been deleted or a worker has stopped since.
    if idempotency_key:
        repeat = services.ledger.find_repeat(idempotency_key, tenant=caller.tenant, body_hash=body_hash)
        if repeat is not None:
            return repeat
    job = resolve_job(services, body, caller=caller, cache=cache or open_cache(services, caller))
    return replace(job, idempotency_key=idempotency_key, body_hash=body_hash)


def resolve_job(services: Services, body: InferenceRequest, *, caller: Caller, cache: SubmitCache) -> Submission:
    """Validate and resolve a request; return a job that can be stored, without an Idempotency-Key.

    Raises:
        RequestError: the request cannot be served.
        KeyForbids: the caller's key does not allow it.
        LedgerUnavailable: Redis does not answer.
    """
    settings, ledger = services.settings, services.ledger
    model = _check_fields(body, settings)
    check_kind(caller, model, body.engine)
    base = cache.base_model(model)
    adapters = check_adapters(services, body.loras, model, caller=caller, cache=cache)
    items = resolve_items(body, model, [adapter.ref for adapter in adapters])
    check_sizes(caller, items)
    check_prompts(items)
    warnings = collect_warnings(body, items, model)
    warnings += dict.fromkeys(warning for adapter in adapters for warning in adapter.warnings)
    if base is None and body.loras:
        # The worker that renders the job checks the layers, and fails its items if they do not fit.
        warnings.append(f"adapters were checked for their form only: no live worker has loaded {model.id}")
    texts = [prompt.reference_texts for prompt in body.prompts]
    features = set(features_of(items))
    if any(texts):
        features.add("references")
    warnings += check_workers(
        items[0], cache.slot_kinds, features=features, may_be_missing=ledger.workers.slots_may_be_missing
    )
    if any(texts):
        # Last: it may take seconds and stores the images, so everything else must be in order.
        references, about_images = cache.references.take(body.prompts)
        items = [item.model_copy(update={"references": refs}) for item, refs in zip(items, references, strict=True)]
        warnings += about_images
    return Submission(
        job_id=str(uuid.uuid4()),
        items=items,
        record={"warnings": warnings, **({"preset": body.preset} if body.preset else {})},
        tenant=caller.tenant,
        priority=body.priority,
        webhook_url=body.webhook_url or "",
        webhook_events=body.webhook_events or (),
        key_id=caller.key_id,
        deadline_s=body.deadline_s,
        compact=all(kind.reads_compact for kind in cache.slot_kinds),
        trace=services.tracer.traceparent(),
    )


def check_adapters(
    services: Services, loras: Sequence[LoraItem], model: Model, *, caller: Caller, cache: SubmitCache
) -> list[ValidAdapter]:
    """Validate the adapters of a request.

    Raises:
        RequestError, KeyForbids: see `permitted_loras` and `SubmitCache.adapters`.
    """
    return cache.adapters(permitted_loras(loras, caller, services.settings.adapters), model)


def _check_fields(body: InferenceRequest, settings: Settings) -> Model:
    """Refuse a request that cannot be served whatever workers and adapter files there are; return its model."""
    if len(body.prompts) > settings.api.max_prompts:
        raise InvalidRequest(
            f"{len(body.prompts)} prompts; use at most {settings.api.max_prompts} in one request", field="prompts"
        )
    model = find_model(body.model)
    reject_unsupported_fields(body, model)
    check_resolved_size([body], max_bytes=settings.api.max_body_bytes)
    if body.webhook_events is not None and body.webhook_url is None:
        raise InvalidRequest("events are sent to a webhook_url, and the request has none", field="webhook_events")
    if body.webhook_url is not None:
        check_webhook_url(body.webhook_url, settings.webhook)
    return model


def store_jobs(
    services: Services, jobs: Sequence[Submission | AcceptedJob], background: BackgroundTasks, *, caller: Caller
) -> list[AcceptedJob]:
    """Store the jobs of one call, all of them or none, and wake workers after the answer has been sent.

    Raises:
        IdempotencyKeyReused, JobTooLarge, QueueFull, LedgerUnavailable: see `Ledger.accept_all`.
        KeyForbids, KeyLimitReached: see there; the caller's key is counted.
    """
    new = [job for job in jobs if isinstance(job, Submission)]
    with services.tracer.span("accept", jobs=len(new), images=sum(len(job.items) for job in new)):
        accepted = services.ledger.accept_all(new, key=key_use(caller)) if new else []
    stored = dict(zip((job.job_id for job in new), accepted, strict=True))
    # A call with the same key at the same time may have stored a job first, and woken its workers.
    wake_workers(services, [job for job in new if not stored[job.job_id].is_repeat], background)
    return [stored[job.job_id] if isinstance(job, Submission) else job for job in jobs]


def wake_workers(services: Services, jobs: Iterable[Submission], background: BackgroundTasks) -> None:
    """Send a wake-up for each image of the jobs after the answer has been sent."""
    counts: Counter[str] = Counter()
    for job in jobs:
        counts[job.pool] += len(job.items)
    for pool, count in counts.items():
        background.add_task(send_wakeups, services.celery, pool, count=count)


def hash_body(body: BaseModel) -> str:
    """Return the identity of a body, by which the ledger recognises a repeat."""
    # Without the token: it has no effect on the job, and must leave no trace in Redis.
    fields = body.model_dump(exclude={"hf_token"})
    # As ASCII, because JSON strings may hold text that no encoding can store (a lone surrogate).
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
