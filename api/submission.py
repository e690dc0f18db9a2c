"""Accept one request: what every route that makes jobs has in common."""

from __future__ import annotations

import hashlib
import json
import uuid

from fastapi import BackgroundTasks

from api.deps import Services
from api.webhooks import check_webhook
from shared.adapters.admit import admit
from shared.celery_app import wake
from shared.errors import InvalidRequest
from shared.ledger import Accepted
from shared.request import InferenceRequest
from shared.resolve import check_items, find_model, refuse_unsupported, resolve, warn


def accept(
    services: Services, body: InferenceRequest, background: BackgroundTasks, *, idempotency_key: str, tenant: str
) -> Accepted:
    """Store a job durably; workers are woken after the answer has left.

    Raises:
        RequestError: the request cannot be served; nothing was stored.
        QueueFull, LedgerUnavailable: see `Ledger.accept`.
    """
    settings, ledger = services.settings, services.ledger
    body_hash = _body_hash(body)
    before = ledger.accepted_before(idempotency_key, tenant=tenant, body_hash=body_hash) if idempotency_key else None
    if before is not None:
        return before
    if len(body.prompts) > settings.api.max_prompts:
        raise InvalidRequest(f"{len(body.prompts)} prompts; at most {settings.api.max_prompts}", field="prompts")
    model = find_model(body.model)
    refuse_unsupported(body)
    slots = ledger.slots()
    base = ledger.base(model.id, slots)
    if body.webhook_url is not None:
        check_webhook(body.webhook_url, settings.webhook)
    adapters = admit(body.loras, model, layers=base.layers if base else None, settings=settings.adapters)
    items = resolve(body, model, adapters)
    check_items(items)
    warnings = warn(body, items, model)
    if base is None and body.loras:
        warnings.append(f"adapters were checked for their form only: no live worker has loaded {model.id}")
    if not any(items[0].pool in slot.pools for slot in slots):
        warnings.append(f"no live worker offers the engine {body.engine!r} for {model.id}; the job waits for one")
    accepted = ledger.accept(
        str(uuid.uuid4()),
        items,
        record={"warnings": warnings},
        tenant=tenant,
        priority=body.priority,
        idempotency_key=idempotency_key,
        body_hash=body_hash,
        webhook_url=body.webhook_url or "",
    )
    if not accepted.replayed:
        background.add_task(wake, services.celery, items[0].pool, count=len(items))
    return accepted


def _body_hash(body: InferenceRequest) -> str:
    """Identity of what was asked. The token is left out: it has no effect and must not leave a trace."""
    # ASCII, since JSON may hold text that has no encoding (a lone surrogate).
    return hashlib.sha256(json.dumps(body.model_dump(exclude={"hf_token"}), sort_keys=True).encode()).hexdigest()
