"""What endpoints need, as annotated names, so that their signatures read as a list of needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Thread
from typing import Annotated

from celery import Celery
from fastapi import Depends, Header, Request

from api.probe import StorageProbe
from shared.ledger import Ledger
from shared.settings import Settings
from shared.storage import ObjectStore


@dataclass(frozen=True)
class Services:
    """Opened once, when the application is made; `threads` are those that must live as long as it does."""

    settings: Settings
    ledger: Ledger
    store: ObjectStore
    storage_probe: StorageProbe
    celery: Celery
    threads: list[Thread] = field(default_factory=list)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


def _base_url(request: Request, services: ServicesDep) -> str:
    return (services.settings.api.base_url or str(request.base_url)).rstrip("/")


BaseUrlDep = Annotated[str, Depends(_base_url)]

IdempotencyKeyDep = Annotated[str, Header(max_length=255)]
TenantDep = Annotated[str, Header(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
