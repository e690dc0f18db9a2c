"""The HTTP client that people import (`from flux2_client import Client`), and the commands that use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.errors import ApiError

if TYPE_CHECKING:
    from flux2_client.client import Client

__all__ = ["ApiError", "Client"]


def __getattr__(name: str) -> Any:
    # Imported on first use: every start of the `flux2` command imports this package, httpx2 takes 0.14 s to import, and
    # a base installation does not have it.
    if name == "Client":
        from flux2_client.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
