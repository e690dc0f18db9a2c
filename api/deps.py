"""The dependencies of endpoints as annotated names, so that a signature lists what its endpoint needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Thread
from typing import Annotated

from anyio import CapacityLimiter
from celery import Celery
from fastapi import Depends, Header, Request

from api.events.streams import EventStreams
from api.job_waits import JobWaits
from api.json_body import require_json
from api.probe import StorageProbe
from api.reference_intake import ReferenceIntake
from api.reference_turns import ReferenceTurns
from api.tenant_places import TenantPlaces
from api.upload_headers import SHA256_PATTERN
from api.upload_slots import UploadSlots
from shared.adapters.remote import RemoteAdapters
from shared.errors import TooManyArchives
from shared.ledger import Ledger
from shared.reference_store import ReferenceStore
from shared.settings import Settings
from shared.sources.uploads import Uploads
from shared.storage import FileStore
from shared.tracing import Tracer


@dataclass(frozen=True)
class Services:
    """The connections, settings and threads that the application opens once.

    Attributes:
        threads: threads that run as long as the application; `/ready` reports those that have ended.
        config_limiter: lets one training config be read at a time.
        listing_limiter: lets two listings be read at a time.
        reference_turns: gives turns to submits with reference images.
        upload_slots: lets four files be received at a time.
        image_slots: a place for each byte of the images that are received at a time.
        job_waits: the calls that wait for jobs.
        event_streams: the calls that watch jobs.
        tracer: traces submits and webhooks.
        archive_limiter: lets four archives read from the object store at a time.
        archive_places: lets 50 archives be downloaded at a time, and 25 by one tenant.
        deletion_limiter: lets one upload be deleted at a time.
    """

    settings: Settings
    ledger: Ledger
    store: FileStore
    storage_probe: StorageProbe
    celery: Celery
    remote_adapters: RemoteAdapters
    uploads: Uploads
    references: ReferenceStore
    reference_intake: ReferenceIntake
    image_slots: UploadSlots
    job_waits: JobWaits
    event_streams: EventStreams
    tracer: Tracer
    threads: list[Thread] = field(default_factory=list)
    # One: a second thread of pure Python gains nothing under the GIL, and delays every poll by its 5 ms switches.
    config_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    # A filtered page keeps Redis busy for 2 ms at a time; 40 at once would delay each poll and claim by 80 ms.
    listing_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    reference_turns: ReferenceTurns = field(default_factory=ReferenceTurns)
    upload_slots: UploadSlots = field(default_factory=lambda: UploadSlots(4))
    # In threads of their own: a store that is away for a minute must not take those that answer polls.
    archive_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    # Each holds the record of a job and a piece of a file, 15 MB for 1,000 images, for as long as its caller takes.
    archive_places: TenantPlaces = field(default_factory=lambda: TenantPlaces(50, 25, refusal=TooManyArchives))
    # Before it, all jobs that have not ended are read.
    deletion_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


#: A dependency of each endpoint that reads a body.
JSON_BODY = Depends(require_json)

ServicesDep = Annotated[Services, Depends(_services)]


def _base_url(request: Request, services: ServicesDep) -> str:
    # The setting first: behind a proxy, the request's URL is the proxy's address for the API, not the caller's.
    return (services.settings.api.base_url or str(request.base_url)).rstrip("/")


BaseUrlDep = Annotated[str, Depends(_base_url)]

IdempotencyKeyDep = Annotated[
    str,
    Header(
        max_length=255,
        description="Any unique text. Repeating the call with the same key and body within 24 hours returns the same "
        "job instead of a second one.",
    ),
]
TenantDep = Annotated[
    str,
    Header(
        alias="x-tenant",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Owner of the job; tenants take turns. Read from a trusted proxy, and on loopback while there are "
        "no API keys; a key has its own tenant.",
    ),
]
# Read by `api.upload_headers`, before the endpoint receives the file; here they are named for `/docs`.
FileSha256Dep = Annotated[
    str | None,
    Header(
        alias="X-Content-SHA256",
        description="SHA-256 of the file, in hexadecimal; it is checked.",
        json_schema_extra={"pattern": SHA256_PATTERN},
    ),
]
FileDigestDep = Annotated[
    str | None,
    Header(alias="Content-Digest", description="The same as RFC 9530 writes it: `sha-256=:BASE64:`."),
]
