"""Build the FastAPI application from settings; importing this module opens no connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from api.deps import Services
from api.doors.setup import DOOR_PROBLEMS, add_doors
from api.errors import install_error_handlers
from api.events.streams import EventStreams
from api.image_uploading import PARALLEL_IMAGES
from api.job_waits import JobWaits
from api.limits import BodyLimit, most_values
from api.metrics.sender import CountSender
from api.openapi import ANY_PROBLEM, Application
from api.page_compression import PageCompression
from api.probe import StorageProbe
from api.reference_intake import ReferenceIntake
from api.routes import (
    adapters,
    archives,
    caller,
    console,
    events,
    fleet,
    gallery,
    health,
    images,
    inference,
    keys,
    metrics,
    models,
    openai_images,
    pages,
    replays,
    requests,
    sweeps,
    uploads,
    usage,
)
from api.stalled_streams import StalledStreams
from api.upload_slots import UploadSlots
from api.webhooks import Courier
from shared.adapters.remote import RemoteAdapters
from shared.caretaker import Caretaker
from shared.celery_app import make_celery
from shared.errors import LedgerUnavailable
from shared.ledger import Ledger
from shared.reference_fetch import ReferenceFetcher
from shared.reference_store import ReferenceStore
from shared.settings import Settings
from shared.sources.sources import Sources
from shared.storage import open_store
from shared.tracing import make_tracer

_DESCRIPTION = """Render FLUX.2 LoRAs trained with ostris/ai-toolkit, in bulk, on your own GPUs.

Submit a job, poll its status (or register a webhook), then fetch its images from your S3 storage. Names and words are
those of ai-toolkit-inference. Every error is an RFC 9457 problem (`application/problem+json`) with a stable `code`."""

# Seconds that a stopping process waits for uploads to remove their parts: one request each.
_ABORTS_S = 5.0

# Seconds for which the ledger refuses calls after Redis did not answer one: waiting calls would fill the thread pool.
# Short enough for `/ready` to see within a second that Redis is back.
_PAUSE_S = 0.5

_TAGS: list[dict[str, Any]] = [
    {"name": "inference", "description": "Submit a job: prompts, adapters and parameters."},
    {"name": "openai", "description": "OpenAI's interface for images, for programs that are written for it."},
    {"name": "replays", "description": "Submit the jobs that reproduce a training run's sample previews."},
    {"name": "sweeps", "description": "Render every combination of checkpoints, multipliers, seeds and prompts."},
    {"name": "requests", "description": "Follow, fetch, cancel and list jobs."},
    {"name": "adapters", "description": "Inspect an adapter file before using it; upload, list and delete files."},
    {"name": "references", "description": "Upload reference images, which prompts then name."},
    {"name": "models", "description": "The models that jobs can name, and the workers that serve them."},
    {"name": "fleet", "description": "What each worker does, and what waits for them."},
    {
        "name": "usage",
        "description": "Images, megapixel-steps and GPU seconds, by day, tenant, API key, model and adapter.",
    },
    {"name": "keys", "description": "Make, list and revoke API keys; for keys with the role `admin`."},
    {"name": "health", "description": "Probes for load balancers and orchestrators."},
    {"name": "metrics", "description": "Figures for Prometheus."},
]


def create_app(settings: Settings) -> FastAPI:
    """Build the application. Neither Redis nor the object store needs to be reachable yet."""
    store, sources = open_store(settings), Sources(settings)
    references = ReferenceStore(sources.own_store)
    timeout_s = settings.redis.timeout_s
    ledger = Ledger.connect(settings.redis.url, settings.queue, timeout_s=timeout_s, pause_s=_PAUSE_S)
    services = Services(
        settings=settings,
        ledger=ledger,
        store=store,
        storage_probe=StorageProbe(store),
        celery=make_celery(settings.redis.url, side="api", timeout_s=timeout_s),
        remote_adapters=RemoteAdapters(sources, max_bytes=settings.adapters.max_bytes),
        uploads=sources.uploads,
        references=references,
        reference_intake=ReferenceIntake(references, ReferenceFetcher(settings, sources), settings.references),
        image_slots=UploadSlots(PARALLEL_IMAGES * settings.references.max_bytes),
        job_waits=JobWaits(ledger),
        event_streams=EventStreams(ledger),
        tracer=make_tracer(settings.trace, service="flux2-api"),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Here and not above: threads run while the application is served, and building it must start nothing.
        counts = CountSender(services.ledger)
        caretaker = Caretaker(services.ledger, services.celery, settings.queue, duties=[counts.send])
        courier = Courier(services.ledger, settings, tracer=services.tracer)
        services.threads[:] = [caretaker, *([courier] if settings.webhook.secret else [])]
        for thread in services.threads:
            thread.start()
        yield
        # The process ends right after this block: uploads that the server canceled still remove their parts.
        await services.upload_slots.join(timeout_s=_ABORTS_S)
        courier.stop()
        caretaker.stop()
        with suppress(LedgerUnavailable):
            counts.send()

    api = settings.api
    app = Application(
        openapi_url="/openapi.json" if api.docs else None,
        title="flux2-queue",
        version=version("flux2-queue"),
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        responses=ANY_PROBLEM,
        # `serve_pages` has the pages without another host's files.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = services
    app.add_middleware(BodyLimit, max_bytes=api.max_body_bytes, max_values=most_values(api.max_prompts))
    app.add_middleware(PageCompression)
    app.add_middleware(StalledStreams)
    add_doors(app, settings, services.ledger, tracer=services.tracer)
    install_error_handlers(app)
    of_jobs = (inference, requests, archives, events, gallery, replays, sweeps, openai_images)
    for routes in (*of_jobs, adapters, uploads, images, models, fleet, usage, keys, caller):
        app.include_router(routes.router, responses=DOOR_PROBLEMS)
    app.include_router(health.router)
    if api.metrics != "off":
        app.include_router(metrics.router)
    if api.docs:
        pages.serve_pages(app)
    if api.console:
        console.serve_console(app)
    return app
