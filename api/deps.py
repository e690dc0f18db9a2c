"""What endpoints need, as annotated names, so that their signatures read as a list of needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request

from shared.ledger import Ledger
from shared.settings import Settings
from shared.storage import ObjectStore


@dataclass(frozen=True)
class Services:
    """Opened once, when the application is made."""

    settings: Settings
    ledger: Ledger
    store: ObjectStore
    celery: Celery


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


def _base_url(request: Request, services: ServicesDep) -> str:
    return (services.settings.api.base_url or str(request.base_url)).rstrip("/")


BaseUrlDep = Annotated[str, Depends(_base_url)]
