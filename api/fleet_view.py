"""Build the HTTP bodies of slots and of the queue; a tenant sees no images and adapters of others."""

from __future__ import annotations

from collections.abc import Mapping

from api.doors.caller import Caller
from api.schemas.fleet import QueueLine, QueueReport, SlotItem, SlotLine, SlotList
from api.timestamps import format_ms
from shared.ledger.queue_reader import Load, QueueOverview
from shared.ledger.slot_listing import ListedSlot, RunningItem, SlotPage


def slot_list_view(page: SlotPage, caller: Caller) -> SlotList:
    return SlotList(
        data=[_slot_line(listed, caller.visible_tenant) for listed in page.slots],
        has_more=page.next_after is not None,
        next_cursor=page.next_after,
    )


def queue_view(overview: QueueOverview, *, slot_states: Mapping[str, int], limit: int) -> QueueReport:
    return QueueReport(
        queued=overview.queued,
        running=overview.running,
        images_per_minute=overview.images_per_minute,
        slots=sum(slot_states.values()),
        slot_states=dict(sorted(slot_states.items())),
        data=[_queue_line(load) for load in overview.loads[:limit]],
    )


def _slot_line(listed: ListedSlot, visible_tenant: str | None) -> SlotLine:
    slot, item, adapters = listed.slot, listed.item, listed.slot.adapters or None
    if visible_tenant is not None:
        item = item if item and item.tenant == visible_tenant else None
        # Other adapters than those of the image show what another tenant uses.
        adapters = adapters if item and item.adapters == adapters else None
    return SlotLine(
        name=slot.name,
        model=slot.model,
        state=slot.state,
        device=slot.device,
        precision=slot.precision,
        engines=list(slot.engines),
        features=list(slot.features or ()),
        memory_bytes=slot.memory_bytes or None,
        gpu_memory_used_bytes=slot.gpu_memory_used_bytes,
        gpu_utilization=slot.gpu_utilization,
        corrupted=slot.corrupted,
        adapters=adapters,
        item=_slot_item(item) if item else None,
    )


def _slot_item(item: RunningItem) -> SlotItem:
    progress = item.progress
    return SlotItem(
        request_id=item.job_id,
        index=item.index,
        tenant=item.tenant,
        adapters=item.adapters,
        attempt=item.attempt,
        stage=progress.stage if progress else None,
        step=progress.step if progress else 0,
        steps=progress.steps if progress else None,
        started_at=format_ms(item.started_ms),
    )


def _queue_line(load: Load) -> QueueLine:
    tenant, model, engine, adapters = load.group
    return QueueLine(
        tenant=tenant,
        model=model,
        engine=engine,
        adapters=adapters or None,
        queued=load.queued,
        running=load.running,
    )
