"""The synchronous client of the HTTP API."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import httpx2
from PIL import Image as PillowImage

from flux2_client.answers import bearer, require_address
from flux2_client.batch.progress import DEFAULT_IN_FLIGHT, BatchProgress
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
from flux2_client.receiver import Receiver, holds_object, receive_into
from flux2_client.steps import Call, Fetch, Pause, Steps
from shared.errors import ApiError

T = TypeVar("T")

#: Limit for connecting to the store, and for each read.
DOWNLOAD_TIMEOUT_S = 60.0


class Image(ImageInfo):
    """A finished image of a `Client`; its methods download it when they are called."""

    def bytes(self) -> bytes:
        """Return the file's bytes; see `Client.download`."""
        client: Client = self._client
        return client.download(self)

    def save(self, path: str | Path) -> Path:
        """Write the file; see `Client.save`."""
        client: Client = self._client
        return client.save(self, path)

    def pil(self) -> PillowImage.Image:
        """Return the picture, decoded by Pillow."""
        picture = PillowImage.open(io.BytesIO(self.bytes()))
        picture.load()
        return picture


class Client:
    """Talks to one API over one pool of connections; close it with a `with` block.

    Every method raises `ApiError` when the API refuses the call or cannot be reached for `retry_s`. An address that has
    never answered is not tried again if nothing listens there, because it is probably mistyped.

    Args:
        base_url: e.g. `http://127.0.0.1:8000`.
        api_key: for an API that needs one; it is sent to `base_url` alone.
        timeout_s: limit for connecting, and for each read and write.
        retry_s: seconds for which a call is repeated while the API is away or the queue is full; 0 makes each call
            once. The waits between attempts grow to half a minute, or are as long as the API's `Retry-After`.
        on_failure: called with the error before each repeat; an exception that it raises ends the call.

    Raises:
        ApiUnreachable: `base_url` is no http or https address.
    """

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
        self._base_url = base_url
        self._options: dict[str, Any] = {
            "api_key": api_key,
            "timeout_s": timeout_s,
            "retry_s": retry_s,
            "on_failure": on_failure,
        }
        # Reading the system's certificates takes longer than most calls, so both pools share them.
        certificates = httpx2.create_ssl_context()
        self._http = httpx2.Client(base_url=base_url, headers=bearer(api_key), timeout=timeout_s, verify=certificates)
        # Not with the API's connections: the store is another host and must not get the API's headers.
        self._store = httpx2.Client(timeout=DOWNLOAD_TIMEOUT_S, verify=certificates)
        self._protocol = Protocol(base_url, Image, owner=self, retry_s=retry_s, on_failure=on_failure)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._store.close()

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job.

        Args:
            request: the body of `POST /v1/inference`.
            idempotency_key: with the same key and request, a later call returns the same job for 24 hours. Default: a
                key for this call only.
        """
        return self._run(self._protocol.submit(request, idempotency_key=idempotency_key))

    def submit_images(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> ImagesJob:
        """Submit a request in OpenAI's form, without waiting for its images.

        Args:
            request: the body of `POST /v1/images/generations`.
            idempotency_key: as in `submit`.
        """
        return self._run(self._protocol.submit_images(request, idempotency_key=idempotency_key))

    def submit_replay(
        self,
        config: str,
        *,
        lora: str | None = None,
        images: Mapping[str, str] = MappingProxyType({}),
        idempotency_key: str | None = None,
    ) -> Replay:
        """Submit the jobs that reproduce the sample previews of a training config.

        Args:
            config: the config file's text, YAML or JSON.
            lora: adapter under the adapter root; None selects `{name}/{name}.safetensors` with the config's name.
            images: the `path` of an upload, or a link, for each reference image by the config's name for it.
            idempotency_key: as in `submit`.

        Raises:
            ApiError: also if images are missing; its `problem` then has the code `REFERENCE_IMAGES_NEEDED`, and their
                names in `images`.
        """
        return self._run(
            self._protocol.submit_replay(config, lora=lora, images=images, idempotency_key=idempotency_key)
        )

    def status(self, request_id: str) -> Status:
        return self._run(self._protocol.status(request_id))

    def result(self, request_id: str) -> Result[Image]:
        """Return the images that are finished so far, with fresh URLs."""
        return self._run(self._protocol.result(request_id))

    def cancel(self, request_id: str) -> Status:
        """Cancel the unfinished images of a job; return the job's status."""
        return self._run(self._protocol.cancel(request_id))

    def resend_webhook(self, request_id: str) -> Status:
        """Send the webhook of an ended job again, whether it was delivered or given up; return the job's status."""
        return self._run(self._protocol.resend_webhook(request_id))

    def requests(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        tenant: str | None = None,
        page_size: int = 50,
    ) -> Iterator[JobLine]:
        """Iterate over the jobs, newest first; pages are fetched when they are needed.

        Args:
            status: only jobs in this state.
            model: only jobs of this model.
            tenant: only jobs of this tenant; a key without the role admin may name its own alone.
        """
        return self._iterate(self._protocol.requests(status=status, model=model, tenant=tenant, page_size=page_size))

    def submit_sweep(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Sweep:
        """Submit a sweep: every combination of checkpoints, multipliers, seeds, prompts and other parameters.

        Args:
            body: the body of `POST /v1/sweeps`.
            idempotency_key: as in `submit`.
        """
        return self._run(self._protocol.submit_sweep(body, idempotency_key=idempotency_key))

    def estimate_sweep(self, body: Mapping[str, Any]) -> SweepEstimate:
        """Return what a sweep would take, without submitting it; its files are not read."""
        return self._run(self._protocol.estimate_sweep(body))

    def sweep_status(self, sweep_id: str) -> SweepStatus:
        return self._run(self._protocol.sweep_status(sweep_id))

    def sweep_result(self, sweep_id: str, *, page_size: int = 500) -> SweepResult[Image]:
        """Return all images of a sweep, finished or not, with fresh URLs; pages are read one after the other."""
        return self._run(self._protocol.sweep_result(sweep_id, page_size=page_size))

    def cancel_sweep(self, sweep_id: str) -> SweepStatus:
        """Cancel the unfinished images of a sweep; return the sweep's status."""
        return self._run(self._protocol.cancel_sweep(sweep_id))

    def sweeps(self, *, tenant: str | None = None, page_size: int = 50) -> Iterator[SweepLine]:
        """Iterate over the sweeps, newest first; `tenant` as in `requests`."""
        return self._iterate(self._protocol.sweeps(tenant=tenant, page_size=page_size))

    def wait(
        self,
        request_id: str,
        *,
        timeout_s: float = math.inf,
        poll_s: float | None = None,
        on_status: Callable[[Status], None] | None = None,
    ) -> Status:
        """Poll until the job ends; return its last status. The API may be away for any part of `timeout_s`.

        Args:
            poll_s: seconds between polls; None begins with a quarter of a second and grows to the API's `Retry-After`.
            on_status: called with every status, including the last one; an exception that it raises ends the wait.

        Raises:
            ApiError: the job did not end within `timeout_s`, or the API does not know it.
        """
        return self._run(self._protocol.wait(request_id, timeout_s=timeout_s, poll_s=poll_s, on_status=on_status))

    def run_batch(
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
        """Answer every line of a batch file that has no answer yet, as `flux2 batch` does.

        It runs an event loop of its own. Where one runs already, as in a notebook, await `AsyncClient.run_batch`.

        Args:
            requests: the batch file, one request on each line.
            output: gets one answer for each line; those of an earlier run stay.
            errors: gets the answers with an error instead of `output`.
            images: folder in which the images are saved; None saves none.
            in_flight: jobs under way at a time.
            retry_failed: whether lines whose answer is an error are rendered again.
            on_progress: called after each change.

        Raises:
            ApiError: the API refuses all calls, or cannot be reached for `retry_s`.
            OutputRefused: a file cannot be read or written, or another batch writes the same answers.
        """
        from flux2_client.async_client import AsyncClient

        async def run() -> BatchProgress:
            async with AsyncClient(self._base_url, **self._options) as client:
                return await client.run_batch(
                    requests,
                    output,
                    errors=errors,
                    images=images,
                    in_flight=in_flight,
                    retry_failed=retry_failed,
                    on_progress=on_progress,
                )

        return asyncio.run(run())

    def wait_sweep(
        self,
        sweep_id: str,
        *,
        timeout_s: float = math.inf,
        poll_s: float | None = None,
        on_status: Callable[[SweepStatus], None] | None = None,
    ) -> SweepStatus:
        """Poll until the sweep ends; return its last status. See `wait`."""
        return self._run(self._protocol.wait_sweep(sweep_id, timeout_s=timeout_s, poll_s=poll_s, on_status=on_status))

    def download(self, image: ImageInfo | str) -> bytes:
        """Download an image, and check its size and sha256; an expired URL is replaced by a fresh one.

        Args:
            image: from a result; or a presigned URL, whose object cannot be checked.

        Raises:
            ApiError: the store refuses, cannot be reached for `retry_s`, or sends other bytes than the worker stored.
        """
        file = io.BytesIO()
        self._run(self._protocol.download(image, make_receiver(file, image)))
        return file.getvalue()

    def save(self, image: ImageInfo, path: str | Path) -> Path:
        """Download an image into a file; return its path.

        The bytes go to `path` with the suffix `.part`, which gets its name once size and sha256 are right. A later call
        goes on where an interrupted one stopped, and does nothing if the file is already there.

        Raises:
            ApiError: as in `download`.
            OutputRefused: the file cannot be written.
        """
        path = Path(path)
        if not holds_object(path, size_bytes=image.size_bytes, sha256=image.sha256):
            with receive_into(path, size_bytes=image.size_bytes, sha256=image.sha256) as receiver:
                self._run(self._protocol.download(image, receiver))
        return path

    def models(self) -> ModelList:
        """Return the models, and the limits of a submit."""
        return self._run(self._protocol.models())

    def adapter(self, path: str, *, model: str = "flux2") -> Adapter:
        """Describe one adapter file, and whether jobs of a model can use it."""
        return self._run(self._protocol.adapter(path, model=model))

    def adapters(self, *, page_size: int = 200) -> Iterator[AdapterFile]:
        """Iterate over the adapter files that jobs can name, in the order of their paths."""
        return self._iterate(self._protocol.adapters(page_size=page_size))

    def upload_adapter(self, file: str | Path | FileBody, *, name: str) -> UploadedAdapter:
        """Upload an adapter file; a repeat changes nothing.

        Args:
            file: a path, or what `open_adapter_body` returns, which also reports progress.
            name: up to 128 letters, digits, `.`, `_` and `-`. Other bytes under the same name are another version.

        Raises:
            UploadRefused: the file cannot be read, or a config next to it decides its strength.
        """
        body = file if isinstance(file, FileBody) else open_adapter_body(Path(file))
        return self._run(self._protocol.upload_adapter(body, name=name))

    def upload_image(self, image: str | Path | bytes) -> UploadedImage:
        """Upload a reference image; its `path` goes into `ctrl_img` of a prompt. A large one that is there is not sent.

        Args:
            image: the path of a PNG, JPEG, WebP or BMP file, or the bytes of one.

        Raises:
            UploadRefused: the file cannot be read, or no job could use it.
        """
        file = check_data(image) if isinstance(image, bytes) else read_image(Path(image))
        return self._run(self._protocol.upload_image(file))

    def delete_adapter(self, name: str, *, sha256: str | None = None) -> DeletedUploads:
        """Delete all versions of an upload, or the one with a sha256; return what was deleted.

        Raises:
            ApiError: there is no such upload, or jobs that have not ended use it.
        """
        return self._run(self._protocol.delete_adapter(name, sha256=sha256))

    def usage(
        self,
        *,
        first_day: str | None = None,
        last_day: str | None = None,
        group_by: Sequence[str] = ("day",),
        tenant: str | None = None,
    ) -> Usage:
        """Return what the caller's tenant used; with a key of the role `admin`, what all tenants used.

        Args:
            first_day: like `2026-01-31`, in UTC; None is the first day of the month of `last_day`.
            last_day: is included; None is today.
            group_by: columns of the rows: `day`, `tenant`, `key`, `model`, `adapter`.
            tenant: only this tenant.
        """
        return self._run(self._protocol.usage(first_day=first_day, last_day=last_day, group_by=group_by, tenant=tenant))

    def usage_csv(
        self,
        *,
        first_day: str | None = None,
        last_day: str | None = None,
        group_by: Sequence[str] = ("day",),
        tenant: str | None = None,
    ) -> str:
        """Return the rows of `usage` as CSV with a header."""
        return self._run(
            self._protocol.usage_csv(first_day=first_day, last_day=last_day, group_by=group_by, tenant=tenant)
        )

    def slots(self, *, page_size: int = 200) -> Iterator[Slot]:
        """Iterate over the live workers, in the order of their names; what they render is shown to its tenant alone."""
        return self._iterate(self._protocol.slots(page_size=page_size))

    def queue(self, *, limit: int = 100, tenant: str | None = None) -> Queue:
        """Return how many images of the caller's tenant wait and run; with a key of the role `admin`, those of all.

        Args:
            limit: number of lines; the sums count all images.
            tenant: only this tenant.
        """
        return self._run(self._protocol.queue(limit=limit, tenant=tenant))

    def _iterate(self, listing: Listing[LineT]) -> Iterator[LineT]:
        while not listing.is_complete:
            yield from self._run(listing.next_page())

    def _run(self, steps: Steps[T]) -> T:
        """Perform the steps of a call; return its value."""
        go_on = partial(next, steps)
        while True:
            try:
                step = go_on()
            except StopIteration as stop:
                value: T = stop.value
                return value
            try:
                go_on = partial(steps.send, self._perform(step))
            except httpx2.RequestError as error:
                go_on = partial(steps.throw, error)

    def _perform(self, step: Call | Fetch | Pause) -> httpx2.Response | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        if isinstance(step, Call):
            return self._http.request(
                step.method,
                step.path,
                content=step.body.pieces() if isinstance(step.body, FileBody) else step.body,
                params=step.params,
                headers=step.sent_headers,
                timeout=httpx2.USE_CLIENT_DEFAULT if step.timeout_s is None else step.timeout_s,
            )
        with self._store.stream("GET", step.url, headers=step.headers) as answer:
            if answer.is_success:
                step.receiver.begin(answer)
                for piece in answer.iter_bytes():
                    if not step.receiver.write(piece):
                        break
            return answer


def make_receiver(file: io.BytesIO, image: ImageInfo | str) -> Receiver:
    """Return a receiver that checks what is known of an image."""
    if isinstance(image, str):
        return Receiver(file)
    return Receiver(file, size_bytes=image.size_bytes, sha256=image.sha256)
