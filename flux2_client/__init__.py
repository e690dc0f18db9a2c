"""The HTTP client that people import (`from flux2_client import Client`), and the commands that use it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shared.errors import ApiError, ApiUnreachable

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient, AsyncImage
    from flux2_client.batch.progress import BatchProgress
    from flux2_client.client import Client, Image
    from flux2_client.models import (
        Adapter,
        AdapterFile,
        DeletedUploads,
        ImagesJob,
        Job,
        JobLine,
        Model,
        Queue,
        Replay,
        Result,
        Slot,
        Status,
        Sweep,
        SweepEstimate,
        SweepLine,
        SweepResult,
        SweepStatus,
        UploadedAdapter,
        UploadedImage,
        Usage,
    )

# Imported on first use: every start of the `flux2` command imports this package, httpx2 takes 0.14 s to import, and a
# base installation does not have it.
_MODULES = {
    "AsyncClient": "async_client",
    "AsyncImage": "async_client",
    "BatchProgress": "batch.progress",
    "Client": "client",
    "Image": "client",
    "Adapter": "models",
    "AdapterFile": "models",
    "DeletedUploads": "models",
    "ImagesJob": "models",
    "Job": "models",
    "JobLine": "models",
    "Model": "models",
    "Queue": "models",
    "Replay": "models",
    "Result": "models",
    "Slot": "models",
    "Status": "models",
    "Sweep": "models",
    "SweepEstimate": "models",
    "SweepLine": "models",
    "SweepResult": "models",
    "SweepStatus": "models",
    "UploadedAdapter": "models",
    "UploadedImage": "models",
    "Usage": "models",
}

__all__ = [
    "Adapter",
    "AdapterFile",
    "ApiError",
    "ApiUnreachable",
    "AsyncClient",
    "AsyncImage",
    "BatchProgress",
    "Client",
    "DeletedUploads",
    "Image",
    "ImagesJob",
    "Job",
    "JobLine",
    "Model",
    "Queue",
    "Replay",
    "Result",
    "Slot",
    "Status",
    "Sweep",
    "SweepEstimate",
    "SweepLine",
    "SweepResult",
    "SweepStatus",
    "UploadedAdapter",
    "UploadedImage",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"flux2_client.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
