"""Print the transcript of docs/mcp.md: `python -m tools.mcp_transcript`.

A client starts `flux2 mcp`, as assistants do, and calls its tools; a service with a simulated slot runs on this host.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import sys
import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import mcp_types
import typer
from fastmcp import Client
from fastmcp.client.client import CallToolResult
from fastmcp.client.transports import StdioTransport
from PIL import Image

from tools.simulated_service import simulated_service

ADAPTERS = {"styles/neon_city.safetensors": "neon"}
STEP_S = 0.02

_WIDTH = 110
# What differs from run to run: ids of jobs, and times.
_ID, _SHORT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "5d1f..."
_TIME, _SHORT_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "2026-..."
_REQUEST = {
    "prompts": ["a city at night, [trigger]"],
    "trigger_word": "neon",
    "loras": [{"path": "styles/neon_city.safetensors", "network_multiplier": 0.8}],
    "seeds": [1, 2],
}
_MISTAKE = {"prompts": ["a city"], "loras": [{"path": "styles/neon.safetensors"}]}


def main() -> None:
    with simulated_service(slots=1, step_s=STEP_S, adapters=ADAPTERS) as url:
        typer.echo(asyncio.run(record(url)))


@asynccontextmanager
async def connect(url: str, **environment: str) -> AsyncIterator[Client[Any]]:
    """Start `flux2 mcp` for the API at `url` inside the block; the value is a client of it."""
    command = ["-m", "shared.cli", "mcp"]
    async with Client(
        StdioTransport(sys.executable, command, env={"FLUX2_CLIENT_URL": url, **environment}, keep_alive=False)
    ) as client:
        yield client


async def record(url: str) -> str:
    """Call the tools; return the calls and answers, without what differs from run to run."""
    async with connect(url) as client:
        transcript = _Transcript(client)
        await transcript.call("list_adapters", {"search": "neon"})
        submitted = await transcript.call("submit", _REQUEST)
        job = {"request_id": (submitted.structured_content or {})["request_id"]}
        await transcript.call("watch", job)
        await transcript.call("fetch_image", {**job, "index": 1})
        await transcript.call("submit", _MISTAKE)
        return transcript.text()


class _Transcript:
    """Calls tools, and notes what was asked and answered."""

    def __init__(self, client: Client[Any]) -> None:
        self._client = client
        self._calls: list[str] = []

    async def call(self, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
        progress: list[str] = []

        async def notice(_share: float, _total: float | None, message: str | None) -> None:
            progress.append(f"progress: {message}")

        answer = await self._client.call_tool(name, dict(arguments), progress_handler=notice, raise_on_error=False)
        lines = [*progress[-1:], *(_describe(part, is_error=answer.is_error) for part in answer.content)]
        asked = _wrap(f"{name} {json.dumps(arguments)}", indent="")
        self._calls.append("\n".join([asked, *(_wrap(line, indent="  ") for line in lines)]))
        return answer

    def text(self) -> str:
        return "\n\n".join(self._calls)


def _describe(part: mcp_types.ContentBlock, *, is_error: bool) -> str:
    if isinstance(part, mcp_types.ImageContent):
        with Image.open(io.BytesIO(base64.b64decode(part.data))) as picture:
            return f"[{part.mime_type}, {picture.width}x{picture.height}]"
    assert isinstance(part, mcp_types.TextContent)
    return f"error: {part.text}" if is_error else json.dumps(json.loads(part.text))


def _wrap(text: str, *, indent: str) -> str:
    return textwrap.fill(
        _TIME.sub(_SHORT_TIME, _ID.sub(_SHORT_ID, text)),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    typer.run(main)
