"""A server of the Model Context Protocol, whose tools call one API."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastmcp import FastMCP

from flux2_client.async_client import AsyncClient
from flux2_client.mcp_tools import Tools
from flux2_client.profiles import Target
from shared.local.ports import LOOPBACK

#: The path that clients call, which is the protocol's custom.
HTTP_PATH = "/mcp"

# Shorter than clients wait for a tool; longer than an API process takes to restart.
_RETRY_S = 20.0
_INSTRUCTIONS = (
    "Render images with FLUX.2 and LoRAs in a queue of GPU workers. submit returns at once with a request_id; watch "
    "waits for the job; fetch_image shows an image of it, and list_images gives the addresses of the full files. Look "
    "for LoRAs with list_adapters, and for the trigger word of one with describe_adapter. A job goes on when a call of "
    "watch ends: call it again."
)
_READS = {"readOnlyHint": True, "openWorldHint": False}
# A repeat renders the images again.
_SUBMITS = {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": False, "openWorldHint": False}
_CANCELS = {"readOnlyHint": False, "destructiveHint": True, "idempotentHint": True, "openWorldHint": False}


def create_server(client: AsyncClient, *, reads_files: bool) -> FastMCP[Any]:
    """Return a server whose tools call the API of `client`; `reads_files` as in `Tools`."""
    server: FastMCP[Any] = FastMCP(
        "flux2-queue", instructions=_INSTRUCTIONS, version=version("flux2-queue"), mask_error_details=True
    )
    tools = Tools(client, reads_files=reads_files)
    server.tool(tools.submit, annotations=_SUBMITS)
    server.tool(tools.cancel, annotations=_CANCELS)
    for tool in (
        tools.watch,
        tools.fetch_image,
        tools.status,
        tools.list_images,
        tools.list_jobs,
        tools.list_adapters,
        tools.describe_adapter,
        tools.list_models,
    ):
        server.tool(tool, annotations=_READS)
    return server


async def serve_stdio(target: Target) -> None:
    """Serve the program that started this one, until it closes stdin."""
    async with _connect(target) as client:
        server = create_server(client, reads_files=True)
        await server.run_async("stdio", show_banner=False, log_level="WARNING")


async def serve_http(target: Target, *, port: int) -> None:
    """Serve the programs of this host, until interrupted.

    Web pages are refused by their `Host` and `Origin`. Files of this host are not read: the caller may be another user.
    """
    async with _connect(target) as client:
        server = create_server(client, reads_files=False)
        await server.run_async(
            "http",
            show_banner=False,
            log_level="WARNING",
            host=LOOPBACK,
            port=port,
            path=HTTP_PATH,
            host_origin_protection=True,
        )


def _connect(target: Target) -> AsyncClient:
    return AsyncClient(target.url, api_key=target.api_key, retry_s=_RETRY_S)
