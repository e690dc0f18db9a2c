"""Start a worker process: lock its slot and its GPU, check Redis and the store, load the model, consume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from shared.celery_app import make_celery
from shared.ledger import Ledger
from shared.log_context import slot_context
from shared.provenance.signer import open_signer
from shared.settings import Settings
from shared.storage import ObjectStore, open_store
from shared.storage_check import require_storage
from shared.tracing import make_tracer
from worker.consumer.adapter_files import open_adapter_files
from worker.consumer.background import BackgroundUploader
from worker.consumer.consumer import START_RETRY_S, consume
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.host_locks import gpu_lock, slot_lock
from worker.consumer.reference_files import reference_loader
from worker.consumer.slot import Slot, slot_name
from worker.consumer.worker import Worker, redis_retries
from worker.consumer.worker_state import WorkerState
from worker.device import device_id, memory_bytes, pick_devices, probe
from worker.gpu_load import GpuLoadSampler, gpu_load_reader
from worker.simulation.company import refuse_simulated_slots

if TYPE_CHECKING:
    from worker.rendering.followers import Followers
    from worker.rendering.renderer import Renderer

logger = logging.getLogger("flux2.worker.serve")

# Long enough for a busy Redis, short enough for several renewals within a lease.
_LEDGER_TIMEOUT_S = 5.0


def serve(settings: Settings) -> None:
    """Load the base model, then run items until SIGTERM.

    Raises:
        ServerFailed: another worker on this host has the slot's name, or this Redis has simulated slots.
        LedgerUnavailable, StorageUnavailable: Redis or the object store does not answer at the start, or refuses this
            user.
        MissingExtra, SignerUnusable: see `open_signer`.
        CheckpointError: the base model cannot be loaded.
    """
    devices = pick_devices(settings.worker.device)
    name = slot_name(settings.worker.name, device_id(devices[0]))
    folder = settings.worker.lock_dir
    with ExitStack() as opened, slot_context(name):
        opened.enter_context(slot_lock(name, redis_url=settings.redis.url.text, folder=folder))
        if devices[0].type == "cuda":
            # In one order, so that two slots with the same GPUs cannot each wait for the other.
            for gpu in sorted(device_id(device) for device in devices):
                opened.enter_context(gpu_lock(gpu, folder=folder))
            torch.cuda.set_device(devices[0])
        consume(_open(_settings_for(devices, settings), name, devices, opened))


def _settings_for(devices: Sequence[torch.device], settings: Settings) -> Settings:
    """Return the settings with which a slot of these devices runs."""
    if len(devices) == 1 or settings.model.precision != "fp8":
        return settings
    if settings.model.attention == "fp8":
        logger.warning("attention stays in bf16: in fp8 it runs on one GPU only", extra={"gpus": len(devices)})
    return settings.model_copy(update={"model": settings.model.model_copy(update={"attention": "bf16"})})


def _open(settings: Settings, name: str, devices: Sequence[torch.device], opened: ExitStack) -> Worker:
    signer = open_signer(settings.provenance)
    ledger = Ledger.connect(settings.redis.url, settings.queue, timeout_s=_LEDGER_TIMEOUT_S)
    store = open_store(settings)
    # Checked before minutes of loading, and before any item could fail because of them.
    ledger.ping()
    ledger.check_permissions()
    require_storage(store)
    refuse_simulated_slots(ledger)
    tracer = make_tracer(settings.trace, service="flux2-worker", instance=name)
    renderer, slot = _load(
        settings, name, devices, ledger, store, followers=_start_followers(settings, devices, opened)
    )
    # Loading takes minutes, in which a simulated slot may have come: this one was not announced yet.
    refuse_simulated_slots(ledger)
    state = WorkerState()
    return Worker(
        settings=settings,
        ledger=ledger,
        store=store,
        celery=make_celery(settings.redis.url, side="worker", timeout_s=settings.redis.timeout_s),
        renderer=renderer,
        slot=slot,
        state=state,
        heartbeat=Heartbeat(
            ledger,
            slot,
            state,
            renderer,
            health_dir=settings.worker.health_dir,
            device_report=_start_sampling(devices[0], settings.model.id, opened),
        ),
        adapter_files=open_adapter_files(settings),
        probe=partial(probe, devices[0]),
        uploader=BackgroundUploader(),
        tracer=tracer,
        signer=signer,
    )


def _start_sampling(device: torch.device, model: str, opened: ExitStack) -> Callable[[], Mapping[str, str]]:
    """Sample a GPU until `opened` closes; return the function that gives its fields of a heartbeat."""
    if device.type != "cuda":
        return dict
    return opened.enter_context(GpuLoadSampler(gpu_load_reader(device), model=model)).report


def _start_followers(settings: Settings, devices: Sequence[torch.device], opened: ExitStack) -> Followers | None:
    """Start a process on each device but the first, until `opened` closes; they load the model at the same time."""
    if len(devices) == 1:
        return None
    from worker.rendering.followers import Followers

    followers = Followers(
        settings.model,
        devices[1:],
        hf_token=settings.hub_token(),
        adapter_cache_bytes=settings.worker.adapter_cache_bytes,
    )
    opened.callback(followers.close)
    return followers


def _load(
    settings: Settings,
    name: str,
    devices: Sequence[torch.device],
    ledger: Ledger,
    store: ObjectStore,
    *,
    followers: Followers | None,
) -> tuple[Renderer, Slot]:
    # Imported here: diffusers takes 4 s, and an error of Redis, storage or a lock must not wait for it.
    from worker.model.load import load_components
    from worker.rendering.renderer import Renderer
    from worker.rendering.toolkit_checkout import load_toolkit

    toolkit = load_toolkit(settings.ai_toolkit_path) if settings.ai_toolkit_path else None
    components = load_components(settings.model, device=devices[0], hf_token=settings.hub_token())
    redis_retries(pause_s=START_RETRY_S)(
        ledger.workers.publish_base_model, settings.model.id, revision=components.revision, layers=components.layers
    )
    renderer = Renderer(
        components,
        prompt_cache=settings.worker.prompt_cache,
        adapter_cache_bytes=settings.worker.adapter_cache_bytes,
        toolkit=toolkit,
        load_reference=reference_loader(store),
        followers=followers,
    )
    renderer.warm_up()
    slot = Slot(
        name=name,
        model=settings.model.id,
        device=",".join(str(device) for device in devices),
        revision=components.revision,
        precision=components.precision_names,
        engines=renderer.engines,
        features=(*components.precision.features, "references", "sigmas", "large"),
        memory_bytes=memory_bytes(devices[0]),
    )
    return renderer, slot
