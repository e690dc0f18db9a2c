"""Estimate what a sweep would take, from recent images, the queue and the operator's prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from api.deps import Services
from api.doors.caller import Caller
from api.schemas.sweep import SweepEstimate, SweepRequest
from api.sweeps.plan import SweepPlan, plan_sweep
from api.sweeps.view import eta_range
from api.usage_report import price_of
from shared.catalog import find_model
from shared.job import AdapterRef, ItemSpec, ReferenceRef, features_of, pool
from shared.ledger.new_items import NewItems
from shared.ledger.shape import Shape
from shared.ledger.usage_rows import Usage, pixel_steps
from shared.resolve import reject_unsupported_fields, resolve_items
from shared.settings import PriceSettings

# Only the number of references matters.
_UNREAD_SHA256 = "0" * 64


def estimate_sweep(services: Services, body: SweepRequest, *, caller: Caller) -> SweepEstimate:
    """Return what a sweep would take; no file is read, and nothing is stored.

    Raises:
        RequestError: the sweep cannot be served, as far as that is known without its files.
        LedgerUnavailable: Redis does not answer.
    """
    plan = plan_sweep(body, services.settings.api)
    items = list(_items_of_one_list(plan))
    lists, images = plan.adapter_lists, plan.adapter_lists * len(items)
    all_pixel_steps = lists * sum(map(pixel_steps, items))
    new = NewItems(
        pool=pool(body.model, body.engine, features_of(items)),
        tenant=caller.tenant,
        priority=body.priority,
        shapes=Counter(map(Shape.of, items)),
        lists=lists,
    )
    outlook, gpu_s = services.ledger.estimate(new)
    prices = services.settings.price
    return SweepEstimate(
        images=images,
        jobs=len(plan.jobs),
        adapter_lists=lists,
        pixel_steps=all_pixel_steps,
        megapixel_steps=all_pixel_steps / 1e6,
        gpu_s=None if gpu_s is None else round(gpu_s, 1),
        eta_s=outlook.eta_s,
        eta_range_s=eta_range(outlook),
        price=_price(images, all_pixel_steps, gpu_s, prices),
        currency=prices.currency if prices.is_set else None,
    )


def _items_of_one_list(plan: SweepPlan) -> Iterator[ItemSpec]:
    """Yield the items of the adapter list with most adapters, as they would be without their files' identities."""
    # A list without a checkpoint may wait in another pool, but for as long.
    chosen = max(plan.jobs, key=lambda job: len(job.request.loras)).adapters
    for job in plan.jobs:
        if job.adapters is not chosen:
            continue
        request, model = job.request, find_model(job.request.model)
        with job.renaming():
            reject_unsupported_fields(request, model)
            adapters = [
                AdapterRef(path=lora.path, sha256="", size_bytes=0, multiplier=lora.multiplier)
                for lora in request.loras
            ]
            items = resolve_items(request, model, adapters)
        for item, prompt in zip(items, request.prompts, strict=True):
            references = tuple(
                ReferenceRef(slot=reference.slot, sha256=_UNREAD_SHA256) for reference in prompt.reference_texts
            )
            yield item.model_copy(update={"references": references})


def _price(images: int, all_pixel_steps: int, gpu_s: float | None, prices: PriceSettings) -> str | None:
    if not prices.is_set or (prices.gpu_hour is not None and gpu_s is None):
        return None
    return price_of(Usage(images=images, pixel_steps=all_pixel_steps, gpu_ms=round(1000 * (gpu_s or 0))), prices)
