"""The tools of `flux2 mcp`: what a model may ask of an API, in calls that each end soon."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import anyio
import anyio.to_thread
from fastmcp import Context
from fastmcp.exceptions import ToolError
from fastmcp.utilities.types import Image
from pydantic import BaseModel, Field

from flux2_client.async_client import AsyncClient, AsyncImage
from flux2_client.composition import compose_prompts
from flux2_client.local_images import find_local_images, is_elsewhere, upload_local_images
from flux2_client.mcp_answers import (
    AdapterList,
    ImageList,
    JobList,
    JobState,
    Submitted,
    copy_as_jpeg,
    describe_progress,
)
from flux2_client.models import Adapter, AdapterFile, ModelList, Status
from shared.errors import CommandError

ParamsT = ParamSpec("ParamsT")
AnswerT = TypeVar("AnswerT")

# Clients give up a call after a minute, unless somebody sets another limit.
_WAIT_S = 45.0
_SIDE_PX = 512
_UNMATCHED = 5

RequestId = Annotated[str, Field(description="Id of the job, from submit or list_jobs.")]


class Lora(BaseModel):
    """An adapter and its strength."""

    path: str = Field(description="As list_adapters gives it; or an hf://, s3:// or https:// address.")
    network_multiplier: float = Field(1.0, ge=-2, le=2, description="Strength: 1 as trained, 0 none.")


def _explained(tool: Callable[ParamsT, Awaitable[AnswerT]]) -> Callable[ParamsT, Coroutine[Any, Any, AnswerT]]:
    """Turn the errors of the client into errors of a tool, whose message the model reads."""

    @functools.wraps(tool)
    async def call(*arguments: ParamsT.args, **options: ParamsT.kwargs) -> AnswerT:
        try:
            return await tool(*arguments, **options)
        except CommandError as error:
            raise _refusal(str(error)) from error

    return call


class Tools:
    """The tools, which call one API.

    Args:
        reads_files: whether references may be files of this host.
    """

    def __init__(self, client: AsyncClient, *, reads_files: bool) -> None:
        self._client = client
        self._reads_files = reads_files

    @_explained
    async def submit(
        self,
        prompts: Annotated[
            tuple[str, ...],
            Field(min_length=1, description="One image each, with each seed; [trigger] stands for trigger_word."),
        ],
        loras: Annotated[
            tuple[Lora, ...], Field(description="Adapters, merged in order; none is the base model.")
        ] = (),
        seeds: Annotated[
            tuple[int, ...],
            Field(description="Render every prompt with each of these; none: 42 plus the prompt's index."),
        ] = (),
        width: Annotated[
            int | None,
            Field(ge=64, le=4096, description="In pixels, rounded down to a multiple of 16; none: the model's."),
        ] = None,
        height: Annotated[int | None, Field(ge=64, le=4096, description="As width.")] = None,
        sample_steps: Annotated[int | None, Field(description="Denoising steps; none: the model's.")] = None,
        guidance_scale: Annotated[float | None, Field(description="Guidance; none: the model's.")] = None,
        preset: Annotated[str | None, Field(description="Preset of the model for steps and guidance.")] = None,
        trigger_word: Annotated[str | None, Field(description="The word that the adapter was trained on.")] = None,
        references: Annotated[
            # The API takes an empty text for no image.
            tuple[Annotated[str, Field(min_length=1)], ...],
            Field(
                max_length=3,
                description="Images that every prompt edits or takes its subject from: https:// or s3:// addresses, "
                "upload:SHA256, or absolute paths of image files on this computer.",
            ),
        ] = (),
        model: Annotated[str, Field(description="Id of a model, from list_models.")] = "flux2",
        output_format: Literal["png", "jpeg", "webp"] = "png",
    ) -> Submitted:
        """Submit a job that renders images, and return at once with its request_id. Then call watch."""
        fields: dict[str, Any] = {
            "width": width,
            "height": height,
            "sample_steps": sample_steps,
            "guidance_scale": guidance_scale,
        }
        fields |= {f"ctrl_img_{n}": self._name(reference) for n, reference in enumerate(references, start=1)}
        request = {
            "model": model,
            "prompts": compose_prompts([{"prompt": prompt} for prompt in prompts], seeds=seeds, fields=_given(fields)),
            "loras": [lora.model_dump() for lora in loras],
            "output_format": output_format,
            **_given({"preset": preset, "trigger_word": trigger_word}),
        }
        files = await anyio.to_thread.run_sync(find_local_images, request)
        job = await self._client.submit(await upload_local_images(self._client, request, files))
        images = len(request["prompts"])
        return Submitted(request_id=job.request_id, images=images, warnings=job.warnings)

    @_explained
    async def watch(
        self,
        request_id: RequestId,
        context: Context,
        wait_s: Annotated[float, Field(ge=0, le=3600, description="Longest time to wait, in seconds.")] = _WAIT_S,
    ) -> JobState:
        """Wait until a job ends, and report its progress. If it has not ended after wait_s, call this again."""
        sent: list[asyncio.Task[None]] = []
        last = -1.0

        def notice(status: Status) -> None:
            nonlocal last
            if status.progress > last:
                last = status.progress
                text = describe_progress(status)
                sent.append(asyncio.create_task(context.report_progress(status.progress, 1.0, text)))

        with anyio.move_on_after(wait_s):
            await self._client.wait(request_id, on_status=notice)
        await asyncio.gather(*sent)
        # Asked again after a wait that was too short: the API may have gone away meanwhile.
        return JobState.of(await self._client.status(request_id))

    @_explained
    async def status(self, request_id: RequestId) -> JobState:
        """Say how far a job is, without waiting."""
        return JobState.of(await self._client.status(request_id))

    @_explained
    async def cancel(self, request_id: RequestId) -> JobState:
        """Cancel the unfinished images of a job; finished ones stay."""
        return JobState.of(await self._client.cancel(request_id))

    @_explained
    async def list_jobs(
        self,
        status: Annotated[
            Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"] | None,
            Field(description="Only jobs in this state."),
        ] = None,
        limit: Annotated[int, Field(ge=1, le=200)] = 20,
    ) -> JobList:
        """List jobs, newest first, with the number of their images by state."""
        jobs = []
        async for job in self._client.requests(status=status, page_size=min(limit, 50)):
            jobs.append(job)
            if len(jobs) == limit:
                break
        return JobList(jobs=tuple(jobs))

    @_explained
    async def list_images(
        self,
        request_id: RequestId,
        first: Annotated[int, Field(ge=0, description="Images of the list to pass over.")] = 0,
        limit: Annotated[int, Field(ge=1, le=200)] = 20,
    ) -> ImageList:
        """List the finished images of a job: their parameters, and the addresses of their files."""
        result = await self._client.result(request_id)
        return ImageList.of(result, result.images[first : first + limit])

    @_explained
    async def fetch_image(
        self,
        request_id: RequestId,
        index: Annotated[int, Field(ge=0, description="Number of the image in its job, from 0.")] = 0,
        side_px: Annotated[
            int, Field(ge=0, le=4096, description="Longer side of the copy in pixels; 0 is the file itself.")
        ] = _SIDE_PX,
    ) -> Image:
        """Show a finished image: by default a JPEG of at most 512 pixels, which takes little of the context."""
        image = await self._find_image(request_id, index)
        data = await image.bytes()
        if side_px == 0:
            return Image(data=data, format=image.format)
        return Image(data=await anyio.to_thread.run_sync(lambda: copy_as_jpeg(data, side_px=side_px)), format="jpeg")

    @_explained
    async def list_adapters(
        self,
        search: Annotated[str, Field(description="Only paths that contain this text, in any case.")] = "",
        limit: Annotated[int, Field(ge=1, le=500)] = 50,
    ) -> AdapterList:
        """List the LoRAs that jobs can name: files of the service, and uploads."""
        found = (file async for file in self._client.adapters() if search.casefold() in file.path.casefold())
        files: list[AdapterFile] = []
        async for file in found:
            if len(files) == limit:
                return AdapterList(adapters=tuple(files), has_more=True)
            files.append(file)
        return AdapterList(adapters=tuple(files), has_more=False)

    @_explained
    async def describe_adapter(
        self,
        path: Annotated[str, Field(description="As list_adapters gives it, or an address.")],
        model: Annotated[str, Field(description="Id of the model to check the adapter against.")] = "flux2",
    ) -> Adapter:
        """Describe a LoRA: its trigger word, kind and training step, and why jobs cannot use it if `refused` is set.

        Of the layers that the model does not have, `unmatched` names the first 5.
        """
        found = await self._client.adapter(path, model=model)
        # Those of another model's adapter can be thousands.
        return found.model_copy(update={"unmatched": found.unmatched[:_UNMATCHED]})

    @_explained
    async def list_models(self) -> ModelList:
        """List the models with their defaults and presets, how many workers serve them, and the limits of a job."""
        return await self._client.models()

    def _name(self, reference: str) -> str:
        """Return an address, or the path of a file that this server may read."""
        if is_elsewhere(reference):
            return reference
        if not self._reads_files:
            raise _refusal(
                f"{reference[:100]!r} is no address; this server reads no files, so give an https:// or s3:// address, "
                "or run it over stdio"
            )
        return os.path.expanduser(reference)

    async def _find_image(self, request_id: str, index: int) -> AsyncImage:
        result = await self._client.result(request_id)
        for image in result.images:
            if image.index == index:
                return image
        if failure := next((each for each in result.errors if each.index == index), None):
            raise _refusal(f"image {index} failed: {failure.message}")
        finished = ", ".join(str(image.index) for image in itertools.islice(result.images, 20)) or "none"
        raise _refusal(
            f"image {index} of {request_id} is not finished, or the job has no such image; finished: {finished}. "
            f"The job is {result.status}: call watch if it has not ended"
        )


def _refusal(message: str) -> ToolError:
    # The library logs errors otherwise, although the model gets them.
    return ToolError(message, log_level=logging.INFO)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
