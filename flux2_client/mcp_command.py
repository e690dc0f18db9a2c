"""`flux2 mcp`: offer an API to assistants that speak the Model Context Protocol."""

from __future__ import annotations

from typing import Annotated

import typer

from flux2_client.options import ApiKey, Profile, Url


def mcp(
    http: Annotated[
        bool,
        typer.Option("--http", help="Serve HTTP on this host's loopback until Ctrl-C, instead of stdin and stdout."),
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port for --http.")] = 8765,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Let assistants submit jobs, watch them and look at images: a server of the Model Context Protocol."""
    from shared.extras import require_extras

    require_extras({"fastmcp": "mcp"})
    import asyncio
    import contextlib
    import signal
    import sys

    from flux2_client.profiles import find_target
    from flux2_client.report import print_message
    from shared.local.ports import LOOPBACK, require_free_port

    target = find_target(url, profile, api_key)
    if http:
        require_free_port(port, owner="the MCP server", option="--port")
    from flux2_client.mcp_server import HTTP_PATH, serve_http, serve_stdio

    if http:
        print_message(f"serving {target.url} to assistants at http://{LOOPBACK}:{port}{HTTP_PATH}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve_http(target, port=port))
        return
    if sys.stdin.isatty():
        print_message("waiting for an assistant on stdin; assistants start this command themselves. Ctrl-C ends it")
    # The thread that reads stdin can be ended by nothing else.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(serve_stdio(target))
