"""`flux2 mcp` as assistants use it: real clients over stdio and HTTP, against a real API with a simulated slot."""

import asyncio
import base64
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from fastmcp import Client
from PIL import Image, ImageChops, ImageStat
from typer.testing import CliRunner

from flux2_client.commands import app
from shared.errors import ServerFailed
from shared.local.ports import pick_free_port
from tools.mcp_transcript import ADAPTERS, STEP_S, record
from tools.simulated_service import simulated_service

ROOT = Path(__file__).parents[2]
NEON = {"path": "styles/neon_city.safetensors"}


@pytest.fixture(scope="module")
def service(empty_redis_server):
    """The address of an API with one simulated slot."""
    with simulated_service(slots=1, step_s=STEP_S, adapters=ADAPTERS, redis=empty_redis_server) as url:
        yield url


@pytest.fixture(scope="module")
def mcp_url(service):
    """The address of `flux2 mcp --http`."""
    port = pick_free_port()
    command = [sys.executable, "-m", "shared.cli", "mcp", "--http", "--port", str(port), "--url", service]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/mcp"
    assert url in process.stderr.readline()
    asyncio.run(wait_for_server(url))
    yield url
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log


async def wait_for_server(url):
    for _ in range(600):
        try:
            async with httpx2.AsyncClient() as client:
                await client.get(url)
                return
        except httpx2.ConnectError:
            await asyncio.sleep(0.05)
    raise AssertionError("the server did not start")


async def answer(client, tool, **arguments):
    return (await client.call_tool(tool, arguments)).structured_content


def picture(result):
    [part] = result.content
    return base64.b64decode(part.data)


def test_the_transcript_of_the_documentation_is_what_the_command_prints(service):
    page = (ROOT / "docs/mcp.md").read_text()
    [shown] = re.findall(r"```text\n(list_adapters .*?)\n```", page, re.DOTALL)

    assert asyncio.run(record(service)) == shown


def test_over_http_an_assistant_sees_progress_and_gets_the_image_that_the_worker_stored(mcp_url):
    async def use():
        progress = []
        async with Client(mcp_url) as client:
            request = {"prompts": ["a", "b"], "seeds": [3], "loras": [NEON], "width": 768, "height": 512}
            job = await answer(client, "submit", **request)

            async def notice(share, total, message):
                progress.append((share, total, message))

            await client.call_tool("watch", {"request_id": job["request_id"]}, progress_handler=notice)
            listed = await answer(client, "list_images", request_id=job["request_id"])
            whole = await client.call_tool("fetch_image", {"request_id": job["request_id"], "index": 1, "side_px": 0})
            small = await client.call_tool("fetch_image", {"request_id": job["request_id"], "index": 1})
            large = await client.call_tool("fetch_image", {"request_id": job["request_id"], "side_px": 4096})
            result = await client.call_tool("list_jobs", {"limit": 1})
        return progress, listed, whole, small, large, result.structured_content["jobs"]

    progress, listed, whole, small, large, [newest] = asyncio.run(use())

    shares = [share for share, _, _ in progress]
    assert shares == sorted(set(shares))
    assert progress[-1] == (1.0, 1.0, "2 of 2 images")
    assert [(image["prompt"], image["seed"], image["width"]) for image in listed["images"]] == [
        ("a", 3, 768),
        ("b", 3, 768),
    ]
    assert len(picture(whole)) == listed["images"][1]["size_bytes"]
    assert whole.content[0].mime_type == "image/png"
    copy = Image.open(io.BytesIO(picture(small)))
    assert (copy.format, copy.size) == ("JPEG", (512, 341))
    # No larger than the image is, and yet a JPEG: many assistants take at most 1 MB.
    same_size = Image.open(io.BytesIO(picture(large)))
    assert (same_size.format, same_size.size) == ("JPEG", (768, 512))
    # The same picture, but for the size and the losses of a JPEG.
    original = Image.open(io.BytesIO(picture(whole))).convert("RGB").resize(copy.size)
    assert max(ImageStat.Stat(ImageChops.difference(original, copy)).mean) < 4
    assert newest["request_id"] == listed["request_id"]


def test_a_watch_that_is_too_short_says_so_and_the_job_can_be_canceled(mcp_url):
    async def use():
        async with Client(mcp_url) as client:
            # Longer than any test, if nobody cancels it.
            job = await answer(client, "submit", prompts=["slow"], seeds=list(range(200)), sample_steps=100)
            watched = await answer(client, "watch", request_id=job["request_id"], wait_s=0.3)
            canceled = await answer(client, "cancel", request_id=job["request_id"])
            ended = await answer(client, "watch", request_id=job["request_id"], wait_s=60)
        return job, watched, canceled, ended

    job, watched, canceled, ended = asyncio.run(use())

    assert job["images"] == 200
    assert not watched["has_ended"]
    assert sum(watched["images"].values()) == 200
    assert canceled["images"]["canceled"] >= 199
    assert (ended["has_ended"], ended["status"]) == (True, "canceled")


def test_web_pages_are_refused(mcp_url):
    [local] = re.findall(r"http://[\d.:]+", mcp_url)

    statuses = [
        httpx2.post(mcp_url, headers=headers, json={}).status_code
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": local})
    ]

    assert statuses[:2] == [421, 403]
    assert statuses[2] not in (421, 403)


def test_files_of_this_computer_are_not_read_for_callers_over_http(mcp_url, tmp_path):
    Image.new("RGB", (96, 96), "red").save(tmp_path / "photo.png")
    request = {"prompts": ["make it snow"], "references": [str(tmp_path / "photo.png")]}

    async def use():
        async with Client(mcp_url) as client:
            return await client.call_tool("submit", request, raise_on_error=False)

    refused = asyncio.run(use())

    assert refused.is_error
    assert "this server reads no files" in refused.content[0].text


def test_a_port_that_is_taken_ends_the_command_with_advice(mcp_url):
    done = CliRunner().invoke(app, ["mcp", "--http", "--port", str(httpx2.URL(mcp_url).port)])

    assert isinstance(done.exception, ServerFailed)
    assert "is in use; choose another with --port" in str(done.exception)


def test_stdout_has_messages_alone_and_ctrl_c_ends_the_command_although_stdin_is_open():
    command = [sys.executable, "-m", "shared.cli", "mcp", "--url", "http://127.0.0.1:1"]
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
    }
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdin.write(json.dumps(hello) + "\n")
    process.stdin.flush()

    answered = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    rest, log = process.communicate(timeout=60)

    assert answered["result"]["serverInfo"]["name"] == "flux2-queue"
    assert (process.returncode, rest, log) == (-signal.SIGINT, "", "")
