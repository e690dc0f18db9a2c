"""Run one simulated slot: a worker process without a model and without torch."""

from __future__ import annotations

from shared.celery_app import make_celery
from shared.job import ENGINES, FEATURES
from shared.ledger import Ledger
from shared.log_context import slot_context
from shared.provenance.signer import open_signer
from shared.settings import Settings
from shared.storage import open_store
from shared.storage_check import require_storage
from shared.tracing import make_tracer
from worker.consumer.adapter_files import open_adapter_files
from worker.consumer.background import BackgroundUploader
from worker.consumer.consumer import consume
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.host_locks import slot_lock
from worker.consumer.reference_files import reference_loader
from worker.consumer.slot import Slot, slot_name
from worker.consumer.worker import Worker
from worker.consumer.worker_state import WorkerState
from worker.simulation import SIMULATED
from worker.simulation.company import refuse_rendering_slots
from worker.simulation.renderer import SimulatedRenderer

_LEDGER_TIMEOUT_S = 5.0


def serve_simulated(settings: Settings, *, step_s: float) -> None:
    """Claim items of every engine of the model and pretend to render them, until SIGTERM.

    Args:
        step_s: seconds of a step at 1024x1024.

    Raises:
        ServerFailed: another worker on this host has the slot's name, or slots of this Redis render.
        LedgerUnavailable, StorageUnavailable: Redis or the object store does not answer at the start, or refuses this
            user.
        MissingExtra, SignerUnusable: see `open_signer`.
    """
    name = slot_name(settings.worker.name, SIMULATED)
    with slot_context(name), slot_lock(name, redis_url=settings.redis.url.text, folder=settings.worker.lock_dir):
        consume(_open(settings, name, step_s))


def _open(settings: Settings, name: str, step_s: float) -> Worker:
    signer = open_signer(settings.provenance, is_simulated=True)
    ledger = Ledger.connect(settings.redis.url, settings.queue, timeout_s=_LEDGER_TIMEOUT_S)
    store = open_store(settings)
    ledger.ping()
    ledger.check_permissions()
    require_storage(store)
    refuse_rendering_slots(ledger)
    renderer = SimulatedRenderer(step_s, load_reference=reference_loader(store))
    slot = Slot(
        name=name,
        model=settings.model.id,
        device=SIMULATED,
        revision=SIMULATED,
        precision=SIMULATED,
        engines=ENGINES,
        features=FEATURES,
    )
    state = WorkerState()
    return Worker(
        settings=settings,
        ledger=ledger,
        store=store,
        celery=make_celery(settings.redis.url, side="worker", timeout_s=settings.redis.timeout_s),
        renderer=renderer,
        slot=slot,
        state=state,
        heartbeat=Heartbeat(ledger, slot, state, renderer, health_dir=settings.worker.health_dir),
        adapter_files=open_adapter_files(settings),
        uploader=BackgroundUploader(),
        tracer=make_tracer(settings.trace, service="flux2-worker", instance=name),
        signer=signer,
    )
