"""Validate the jobs of a sweep and store them together."""

from __future__ import annotations

import uuid

from fastapi import BackgroundTasks

from api.deps import Services
from api.doors.allowances import check_kind, key_use
from api.doors.caller import Caller
from api.schemas.sweep import SweepRequest
from api.submission import check_adapters, hash_body, open_cache, resolve_job, wake_workers
from api.sweeps.plan import SweepPlan, plan_sweep
from shared.catalog import find_model
from shared.ledger import AcceptedSweep, Submission, SweepSubmission


def accept_sweep(
    services: Services, body: SweepRequest, background: BackgroundTasks, *, idempotency_key: str, caller: Caller
) -> AcceptedSweep:
    """Store a sweep durably, all of its jobs or none, and wake workers after the answer has been sent.

    Raises:
        RequestError: the sweep cannot be served; nothing was stored.
        AccessRefused: the caller's key does not allow the sweep, or not now.
        QueueFull, LedgerUnavailable: see `Sweeps.accept`; it may also raise a RequestError.
    """
    body_hash = hash_body(body)
    sweeps = services.ledger.sweeps
    if idempotency_key:
        # First: a repeat must return its sweep even if a checkpoint has been deleted since.
        repeat = sweeps.find_repeat(idempotency_key, tenant=caller.tenant, body_hash=body_hash)
        if repeat is not None:
            return repeat
    plan = plan_sweep(body, services.settings.api)
    jobs, warnings = _resolve(services, plan, caller)
    sweep = SweepSubmission(
        sweep_id=str(uuid.uuid4()),
        model=body.model,
        record=plan.record(warnings).model_dump_json(),
        tenant=caller.tenant,
        idempotency_key=idempotency_key,
        body_hash=body_hash,
    )
    with services.tracer.span("accept", jobs=len(jobs), images=sum(len(job.items) for job in jobs)):
        accepted = sweeps.accept(sweep, jobs, key=key_use(caller))
    if not accepted.is_repeat:
        wake_workers(services, jobs, background)
    return accepted


def _resolve(services: Services, plan: SweepPlan, caller: Caller) -> tuple[list[Submission], list[str]]:
    """Validate the requests of a plan; return their jobs, and the warnings of all of them, each once."""
    # Shared by all jobs, so that each file is read once.
    cache = open_cache(services, caller)
    model = find_model(plan.body.model)
    check_kind(caller, model, plan.body.engine)
    # Before the reference images of the first job, which may take all the time that a call has for other hosts.
    for planned in plan.jobs:
        with planned.renaming():
            check_adapters(services, planned.request.loras, model, caller=caller, cache=cache)
    jobs: list[Submission] = []
    warnings: dict[str, None] = {}
    for planned in plan.jobs:
        with planned.renaming():
            job = resolve_job(services, planned.request, caller=caller, cache=cache)
        jobs.append(job)
        warnings |= dict.fromkeys(planned.rename(text) for text in job.record["warnings"])
    return jobs, list(warnings)
