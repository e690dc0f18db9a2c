"""The tools of `flux2 mcp` against a served API; the tests act as the worker."""

import asyncio
import hashlib
import shutil
from contextlib import asynccontextmanager

import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError
from PIL import Image

from flux2_client.async_client import AsyncClient
from flux2_client.mcp_server import create_server
from shared.job import ItemError
from tools.mcp_transcript import connect


@asynccontextmanager
async def in_memory(api):
    """A client of a server in this process, whose tools call a served API."""
    async with AsyncClient(api.url, retry_s=0) as client, Client(create_server(client, reads_files=True)) as it:
        yield it


async def answer(client, tool, **arguments):
    return (await client.call_tool(tool, arguments)).structured_content


def test_an_image_that_failed_is_missing_with_its_reason(api, finish):
    async def use():
        async with in_memory(api) as client:
            job = (await answer(client, "submit", prompts=["good", "bad", "queued"], width=64, height=64))["request_id"]
            for _ in range(2):
                claim = api.ledger.claim_next(("flux2",), slot="gpu-0", boot="boot", warm="base")
                if claim.spec.prompt == "bad":
                    error = ItemError(code="run_failed", message="the output is not finite", retryable=False)
                    api.ledger.commit(claim, error)
                else:
                    finish(api, claim)
            state = await answer(client, "status", request_id=job)
            listed = await answer(client, "list_images", request_id=job)
            messages = []
            for index in (1, 2, 3):
                with pytest.raises(ToolError) as raised:
                    await client.call_tool("fetch_image", {"request_id": job, "index": index})
                messages.append(str(raised.value))
        return state, listed, messages

    state, listed, messages = asyncio.run(use())

    failure = {"index": 1, "code": "run_failed", "message": "the output is not finite"}
    assert state["images"] == {"succeeded": 1, "failed": 1, "in_queue": 1}
    assert state["failures"] == listed["failures"] == [failure]
    assert messages[0] == "image 1 failed: the output is not finite"
    assert all("is not finished" in message and "finished: 0." in message for message in messages[1:])


def test_adapters_are_found_by_a_part_of_their_path(api, adapter_root):
    for name in ("robots/one.safetensors", "robots/Two.safetensors", "cats/three.safetensors"):
        (adapter_root / name).parent.mkdir(exist_ok=True)
        (adapter_root / name).write_bytes(b"")

    async def use():
        async with in_memory(api) as client:
            return [
                await answer(client, "list_adapters", **arguments)
                for arguments in ({}, {"search": "ROBOTS/t"}, {"search": "robots", "limit": 1})
            ]

    everything, found, limited = asyncio.run(use())

    assert [file["path"] for file in everything["adapters"]] == [
        "cats/three.safetensors", "robots/Two.safetensors", "robots/one.safetensors",
    ]  # fmt: skip
    assert [file["path"] for file in found["adapters"]] == ["robots/Two.safetensors"]
    assert (len(limited["adapters"]), limited["has_more"], everything["has_more"]) == (1, True, False)


def test_of_the_layers_that_the_base_does_not_have_an_assistant_reads_a_few(api, adapter_root, goldens, slot_report):
    shutil.copy(goldens / "adapters/lora_r4_bf16.safetensors", adapter_root / "a.safetensors")
    api.ledger.workers.beat("gpu-0", slot_report())
    api.ledger.workers.publish_base_model("flux2", revision="r", layers={"img_in": (64, 128)})

    async def use():
        async with in_memory(api) as client:
            return await answer(client, "describe_adapter", path="a.safetensors")

    described = asyncio.run(use())

    assert (described["layers"], described["matched"], len(described["unmatched"])) == (20, 0, 5)
    assert "matches no layer" in described["refused"]


def test_a_mistake_of_the_assistant_is_explained_to_it(api):
    async def use():
        async with in_memory(api) as client:
            calls = [
                ("status", {"request_id": "unknown"}),
                ("fetch_image", {"request_id": "unknown"}),
                ("submit", {"prompts": ["a"], "model": "sd15"}),
                ("submit", {"prompts": []}),
                ("submit", {"prompts": ["a"], "references": ["/no/such.png"]}),
                ("submit", {"prompts": ["a"], "references": ["~nobody-of-this-host/such.png"]}),
                ("submit", {"prompts": ["a"], "references": ["a\0.png"]}),
                ("submit", {"prompts": ["a"], "references": [""]}),
            ]
            answers = [await client.call_tool(*call, raise_on_error=False) for call in calls]
        return [(each.is_error, each.content[0].text) for each in answers]

    answers = asyncio.run(use())

    assert all(is_error for is_error, _ in answers)
    words = (
        "REQUEST_NOT_FOUND",
        "REQUEST_NOT_FOUND",
        "MODEL_NOT_FOUND",
        "at least 1 item",
        "no/such.png' is no file of this host; give an image file",
        "such.png' is no file of this host; give an image file",
        r"'a\x00.png' is no file of this host; give an image file",
        "at least 1 character",
    )
    for word, (_, text) in zip(words, answers, strict=True):
        assert word in text


def test_over_stdio_the_environment_gives_address_and_key_and_files_of_this_computer_are_references(
    api, make_key, slot_report, tmp_path
):
    api.ledger.workers.beat("gpu-0", slot_report(features="merged,references"))
    secret = make_key(tenant="studio")["Authorization"].removeprefix("Bearer ")
    file = tmp_path / "photo.png"
    Image.new("RGB", (96, 96), "red").save(file)

    async def use():
        async with connect(api.url, FLUX2_API_KEY=secret) as client:
            return await answer(client, "submit", prompts=["make it snow"], references=[str(file)])

    accepted = asyncio.run(use())

    claim = api.ledger.claim_next(("flux2+references",), slot="gpu-0", boot="boot", warm="base")
    assert claim.job_id == accepted["request_id"]
    assert [each.sha256 for each in claim.spec.references] == [hashlib.sha256(file.read_bytes()).hexdigest()]
