"""The asynchronous client of the HTTP API: the verbs of `Client`, which documents them, with `await`."""

from __future__ import annotations

import io
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx2
from PIL import Image as PillowImage

from flux2_client.answers import bearer, require_address
from flux2_client.batch.progress import DEFAULT_IN_FLIGHT, BatchProgress
from flux2_client.client import DOWNLOAD_TIMEOUT_S, make_receiver
from flux2_client.file_body import FileBody, open_adapter_body
from flux2_client.image_file import check_data, read_image
from flux2_client.listing import Listing
from flux2_client.models import (
    Adapter,
    AdapterFile,
    DeletedUploads,
    ImageInfo,
    ImagesJob,
    Job,
    JobLine,
    LineT,
    ModelList,
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
from flux2_client.protocol import Protocol
from flux2_client.receiver import holds_object, receive_into
from flux2_client.steps import Call, Fetch, Pause, Steps
from shared.errors import ApiError

T = TypeVar("T")


class AsyncImage(ImageInfo):
    """A finished image of an `AsyncClient`; its methods download it when they are awaited."""

    async def bytes(self) -> bytes:
        client: AsyncClient = self._client
        return await client.download(self)

    async def save(self, path: str | Path) -> Path:
        client: AsyncClient = self._client
        return await client.save(self, path)

    async def pil(self) -> PillowImage.Image:
        picture = PillowImage.open(io.BytesIO(await self.bytes()))
        picture.load()
        return picture


class AsyncClient:
    """Talks to one API over one pool of connections; close it with an `async with` block. See `Client`."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 60.0,
        on_failure: Callable[[ApiError], None] | None = None,
    ) -> None:
        require_address(base_url)
        # Reading the system's certificates takes longer than most calls, so both pools share them.
        certificates = httpx2.create_ssl_context()
        self._http = httpx2.AsyncClient(
            base_url=base_url, headers=bearer(api_key), timeout=timeout_s, verify=certificates
        )
        # Not with the API's connections: the store is another host and must not get the API's headers.
        self._store = httpx2.AsyncClient(timeout=DOWNLOAD_TIMEOUT_S, verify=certificates)
        self._protocol = Protocol(base_url, AsyncImage, owner=self, retry_s=retry_s, on_failure=on_failure)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()
        await self._store.aclose()

    async def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        return await self._run(self._protocol.submit(request, idempotency_key=idempotency_key))

    async def submit_images(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> ImagesJob:
        return await self._run(self._protocol.submit_images(request, idempotency_key=idempotency_key))

    async def submit_replay(
        self,
        config: str,
        *,
        lora: str | None = None,
        images: Mapping[str, str] = MappingProxyType({}),
        idempotency_key: str | None = None,
    ) -> Replay:
        return await self._run(
            self._protocol.submit_replay(config, lora=lora, images=images, idempotency_key=idempotency_key)
        )

    async def status(self, request_id: str) -> Status:
        return await self._run(self._protocol.status(request_id))

    async def result(self, request_id: str) -> Result[AsyncImage]:
        return await self._run(self._protocol.result(request_id))

    async def cancel(self, request_id: str) -> Status:
        return await self._run(self._protocol.cancel(request_id))

    async def resend_webhook(self, request_id: str) -> Status:
        return await self._run(self._protocol.resend_webhook(request_id))

    def requests(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        tenant: str | None = None,
        page_size: int = 50,
    ) -> AsyncIterator[JobLine]:
        return self._iterate(self._protocol.requests(status=status, model=model, tenant=tenant, page_size=page_size))

    async def submit_sweep(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Sweep:
        return await self._run(self._protocol.submit_sweep(body, idempotency_key=idempotency_key))

    async def estimate_sweep(self, body: Mapping[str, Any]) -> SweepEstimate:
        return await self._run(self._protocol.estimate_sweep(body))

    async def sweep_status(self, sweep_id: str) -> SweepStatus:
        return await self._run(self._protocol.sweep_status(sweep_id))

    async def sweep_result(self, sweep_id: str, *, page_size: int = 500) -> SweepResult[AsyncImage]:
        return await self._run(self._protocol.sweep_result(sweep_id, page_size=page_size))

    async def cancel_sweep(self, sweep_id: str) -> SweepStatus:
        return await self._run(self._protocol.cancel_sweep(sweep_id))

    def sweeps(self, *, tenant: str | None = None, page_size: int = 50) -> AsyncIterator[SweepLine]:
        return self._iterate(self._protocol.sweeps(tenant=tenant, page_size=page_size))

    async def wait(
        self,
        request_id: str,
        *,
        timeout_s: float = math.inf,
        poll_s: float | None = None,
        on_status: Callable[[Status], None] | None = None,
    ) -> Status:
        return await self._run(self._protocol.wait(request_id, timeout_s=timeout_s, poll_s=poll_s, on_status=on_status))

    async def run_batch(
        self,
        requests: str | Path,
        output: str | Path,
        *,
        errors: str | Path | None = None,
        images: str | Path | None = None,
        in_flight: int = DEFAULT_IN_FLIGHT,
        retry_failed: bool = False,
        on_progress: Callable[[BatchProgress], None] | None = None,
    ) -> BatchProgress:
        # It imports this module, and few programs need it.
        from flux2_client.batch.batch_files import BatchPaths
        from flux2_client.batch.run import run_batch

        paths = BatchPaths(
            Path(requests),
            Path(output),
            None if errors is None else Path(errors),
            None if images is None else Path(images),
        )
        return await run_batch(self, paths, in_flight=in_flight, retry_failed=retry_failed, on_progress=on_progress)

    async def wait_sweep(
        self,
        sweep_id: str,
        *,
        timeout_s: float = math.inf,
        poll_s: float | None = None,
        on_status: Callable[[SweepStatus], None] | None = None,
    ) -> SweepStatus:
        steps = self._protocol.wait_sweep(sweep_id, timeout_s=timeout_s, poll_s=poll_s, on_status=on_status)
        return await self._run(steps)

    async def download(self, image: ImageInfo | str) -> bytes:
        file = io.BytesIO()
        await self._run(self._protocol.download(image, make_receiver(file, image)))
        return file.getvalue()

    async def save(self, image: ImageInfo, path: str | Path) -> Path:
        path = Path(path)
        if not holds_object(path, size_bytes=image.size_bytes, sha256=image.sha256):
            with receive_into(path, size_bytes=image.size_bytes, sha256=image.sha256) as receiver:
                await self._run(self._protocol.download(image, receiver))
        return path

    async def models(self) -> ModelList:
        return await self._run(self._protocol.models())

    async def adapter(self, path: str, *, model: str = "flux2") -> Adapter:
        return await self._run(self._protocol.adapter(path, model=model))

    def adapters(self, *, page_size: int = 200) -> AsyncIterator[AdapterFile]:
        return self._iterate(self._protocol.adapters(page_size=page_size))

    async def upload_adapter(self, file: str | Path | FileBody, *, name: str) -> UploadedAdapter:
        body = file if isinstance(file, FileBody) else await anyio.to_thread.run_sync(open_adapter_body, Path(file))
        return await self._run(self._protocol.upload_adapter(body, name=name))

    async def upload_image(self, image: str | Path | bytes) -> UploadedImage:
        call = partial(check_data, image) if isinstance(image, bytes) else partial(read_image, Path(image))
        return await self._run(self._protocol.upload_image(await anyio.to_thread.run_sync(call)))

    async def delete_adapter(self, name: str, *, sha256: str | None = None) -> DeletedUploads:
        return await self._run(self._protocol.delete_adapter(name, sha256=sha256))

    async def usage(
        self,
        *,
        first_day: str | None = None,
        last_day: str | None = None,
        group_by: Sequence[str] = ("day",),
        tenant: str | None = None,
    ) -> Usage:
        return await self._run(
            self._protocol.usage(first_day=first_day, last_day=last_day, group_by=group_by, tenant=tenant)
        )

    async def usage_csv(
        self,
        *,
        first_day: str | None = None,
        last_day: str | None = None,
        group_by: Sequence[str] = ("day",),
        tenant: str | None = None,
    ) -> str:
        return await self._run(
            self._protocol.usage_csv(first_day=first_day, last_day=last_day, group_by=group_by, tenant=tenant)
        )

    def slots(self, *, page_size: int = 200) -> AsyncIterator[Slot]:
        return self._iterate(self._protocol.slots(page_size=page_size))

    async def queue(self, *, limit: int = 100, tenant: str | None = None) -> Queue:
        return await self._run(self._protocol.queue(limit=limit, tenant=tenant))

    async def _iterate(self, listing: Listing[LineT]) -> AsyncIterator[LineT]:
        while not listing.is_complete:
            for line in await self._run(listing.next_page()):
                yield line

    async def _run(self, steps: Steps[T]) -> T:
        go_on = partial(next, steps)
        while True:
            try:
                step = go_on()
            except StopIteration as stop:
                value: T = stop.value
                return value
            try:
                go_on = partial(steps.send, await self._perform(step))
            except httpx2.RequestError as error:
                go_on = partial(steps.throw, error)

    async def _perform(self, step: Call | Fetch | Pause) -> httpx2.Response | None:
        if isinstance(step, Pause):
            await anyio.sleep(step.seconds)
            return None
        if isinstance(step, Call):
            return await self._http.request(
                step.method,
                step.path,
                content=step.body.pieces_async() if isinstance(step.body, FileBody) else step.body,
                params=step.params,
                headers=step.sent_headers,
                timeout=httpx2.USE_CLIENT_DEFAULT if step.timeout_s is None else step.timeout_s,
            )
        async with self._store.stream("GET", step.url, headers=step.headers) as answer:
            if answer.is_success:
                step.receiver.begin(answer)
                async for piece in answer.aiter_bytes():
                    if not step.receiver.write(piece):
                        break
            return answer
