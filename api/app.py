"""The FastAPI application, made from settings; nothing is opened at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from api import errors
from api.deps import Services
from api.limits import BodyLimit
from api.probe import StorageProbe
from api.routes import adapters, health, inference, metrics, models, replays, requests
from api.webhooks import Courier
from shared.caretaker import Caretaker
from shared.celery_app import make_celery
from shared.ledger import Ledger
from shared.settings import Settings
from shared.storage import open_store

_DESCRIPTION = """Renders LoRAs trained with ostris/ai-toolkit on FLUX.2, in bulk, on your own GPUs.

Submit a job, poll its status, fetch its images from your S3 storage. Every error is RFC 9457 problem+json with a
stable `code`."""


def create_app(settings: Settings) -> FastAPI:
    """Make the application. Redis and the object store need not answer yet."""
    store = open_store(settings)
    timeout_s = settings.redis.timeout_s
    services = Services(
        settings=settings,
        ledger=Ledger.connect(settings.redis.url, settings.queue, timeout_s=timeout_s, pause_s=timeout_s),
        store=store,
        storage_probe=StorageProbe(store),
        celery=make_celery(settings.redis.url, side="api", timeout_s=timeout_s),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        caretaker = Caretaker(services.ledger, services.celery, settings.queue)
        courier = Courier(services.ledger, settings)
        services.threads[:] = [caretaker, *([courier] if settings.webhook.secret else [])]
        for thread in services.threads:
            thread.start()
        yield
        courier.stop()
        caretaker.stop()

    app = FastAPI(title="flux2-queue", version=version("flux2-queue"), description=_DESCRIPTION, lifespan=lifespan)
    app.state.services = services
    app.add_middleware(BodyLimit, max_bytes=settings.api.max_body_bytes)
    errors.install(app)
    for routes in (inference, requests, replays, adapters, models, health, metrics):
        app.include_router(routes.router)
    return app
