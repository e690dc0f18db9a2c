"""Accept requests: what every route that makes jobs has in common."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import BackgroundTasks
from pydantic import BaseModel

from api.deps import Services
from api.webhooks import check_webhook
from shared.adapters.validate import validate_adapters
from shared.celery_app import wake
from shared.errors import InvalidRequest, QueueFull
from shared.job import ItemSpec
from shared.ledger import Accepted
from shared.request import InferenceRequest
from shared.resolve import check_prompts, collect_warnings, find_model, reject_unsupported_fields, resolve_items


@dataclass(frozen=True)
class Prepared:
    """A job that can be served, and that nobody has stored."""

    job_id: str
    items: Sequence[ItemSpec]
    warnings: Sequence[str]
    tenant: str
    priority: int
    idempotency_key: str
    body_hash: str
    webhook_url: str


def accept(
    services: Services, body: InferenceRequest, background: BackgroundTasks, *, idempotency_key: str, tenant: str
) -> Accepted:
    """Store a job durably; workers are woken after the answer has left.

    Raises:
        RequestError: the request cannot be served; nothing was stored.
        QueueFull, LedgerUnavailable: see `Ledger.accept`.
    """
    job = prepare(services, body, idempotency_key=idempotency_key, body_hash=hash_body(body), tenant=tenant)
    return _store(services, job, background)


def prepare(
    services: Services, body: InferenceRequest, *, idempotency_key: str, body_hash: str, tenant: str
) -> Prepared | Accepted:
    """Do all that accepting a job takes, short of storing it.

    Args:
        body_hash: identity of what the caller sent, of which `body` may be a part.

    Returns:
        The job that this key and hash were accepted as before, if they were.

    Raises:
        RequestError: the request cannot be served.
        LedgerUnavailable: Redis does not answer.
    """
    settings, ledger = services.settings, services.ledger
    before = ledger.find_repeat(idempotency_key, tenant=tenant, body_hash=body_hash) if idempotency_key else None
    if before is not None:
        return before
    if len(body.prompts) > settings.api.max_prompts:
        raise InvalidRequest(f"{len(body.prompts)} prompts; at most {settings.api.max_prompts}", field="prompts")
    model = find_model(body.model)
    reject_unsupported_fields(body)
    slots = ledger.workers.live_slots()
    base = ledger.workers.base_model(model.id, slots)
    if body.webhook_url is not None:
        check_webhook(body.webhook_url, settings.webhook)
    adapters = validate_adapters(body.loras, model, layers=base.layers if base else None, settings=settings.adapters)
    items = resolve_items(body, model, adapters)
    check_prompts(items)
    warnings = collect_warnings(body, items, model)
    if base is None and body.loras:
        warnings.append(f"adapters were checked for their form only: no live worker has loaded {model.id}")
    if not any(items[0].pool in slot.pools for slot in slots):
        warnings.append(f"no live worker offers the engine {body.engine!r} for {model.id}; the job waits for one")
    return Prepared(
        job_id=str(uuid.uuid4()),
        items=items,
        warnings=warnings,
        tenant=tenant,
        priority=body.priority,
        idempotency_key=idempotency_key,
        body_hash=body_hash,
        webhook_url=body.webhook_url or "",
    )


def store_together(
    services: Services, jobs: Sequence[Prepared | Accepted], background: BackgroundTasks
) -> list[Accepted]:
    """Store the jobs of one call, all of one pool, or none of them.

    Raises:
        QueueFull: there is no room for all of them. What was stored is canceled, unless they have an Idempotency-Key,
            with which the caller repeats the call and is given it.
        LedgerUnavailable: Redis does not answer. What was stored stays, and is given to who repeats the call with its
            key.
    """
    new = [job for job in jobs if isinstance(job, Prepared)]
    _check_room(services, [item for job in new for item in job.items])
    try:
        return [_store(services, job, background) for job in jobs]
    except QueueFull:
        # Wake-ups of jobs that stay are lost with the background; the caretaker's audit sends them.
        for job in new:
            if not job.idempotency_key:
                services.ledger.cancel(job.job_id)
        raise


def hash_body(body: BaseModel) -> str:
    """Identity of what was asked. The token is left out: it has no effect and must not leave a trace."""
    # ASCII, since JSON may hold text that has no encoding (a lone surrogate).
    return hashlib.sha256(json.dumps(body.model_dump(exclude={"hf_token"}), sort_keys=True).encode()).hexdigest()


def _store(services: Services, job: Prepared | Accepted, background: BackgroundTasks) -> Accepted:
    if isinstance(job, Accepted):
        return job
    accepted = services.ledger.accept(
        job.job_id,
        job.items,
        record={"warnings": list(job.warnings)},
        tenant=job.tenant,
        priority=job.priority,
        idempotency_key=job.idempotency_key,
        body_hash=job.body_hash,
        webhook_url=job.webhook_url,
    )
    if not accepted.is_repeat:
        background.add_task(wake, services.celery, job.items[0].pool, count=len(job.items))
    return accepted


def _check_room(services: Services, items: Sequence[ItemSpec]) -> None:
    cap = services.settings.queue.cap
    if items and (queued := services.ledger.queue_length(items[0].pool)) + len(items) > cap:
        raise QueueFull(queued, cap)
