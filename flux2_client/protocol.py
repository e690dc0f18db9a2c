"""The API's verbs as generators of steps: which request to send, how to read its answer, when to try again.

Nothing here opens a connection or sleeps: `Client` and `AsyncClient` perform the steps.

Every call can be repeated safely: reads change nothing, a second cancel changes nothing, and a submit carries an
Idempotency-Key. A call whose answer was lost, or that the API could not serve yet, is therefore repeated.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from flux2_client.answers import (
    connection_failure,
    parse_answer,
    parse_retry_after,
    raise_if_refused,
    raise_if_withheld,
)
from flux2_client.file_body import FileBody
from flux2_client.image_file import ImageFile
from flux2_client.listing import Listing
from flux2_client.local_objects import is_file_url, receive_file
from flux2_client.models import (
    Adapter,
    AdapterFile,
    DeletedUploads,
    ImageInfo,
    ImagesJob,
    ImageT,
    Job,
    JobLine,
    LineT,
    ModelList,
    Page,
    Queue,
    Replay,
    Result,
    Slot,
    Status,
    Sweep,
    SweepCell,
    SweepEstimate,
    SweepLine,
    SweepPage,
    SweepResult,
    SweepStatus,
    UploadedAdapter,
    UploadedImage,
    Usage,
)
from flux2_client.receiver import Receiver
from flux2_client.retries import repeat_call
from flux2_client.steps import UPLOAD_TIMEOUT_S, Call, Fetch, Pause, Steps
from shared.errors import ApiError, ApiUnreachable, DownloadFailed
from shared.sources.source import UPLOAD_NAME

T = TypeVar("T")
AnswerT = TypeVar("AnswerT", bound=BaseModel)
StatusT = TypeVar("StatusT", Status, SweepStatus)

# Polls begin often, because a small job ends soon, and become as rare as the API's Retry-After asks for.
_FIRST_POLL_S = 0.25
_LONGEST_POLL_S = 30.0
# Of an image of this size, a question costs less than sending what the service has already.
_WORTH_ASKING_BYTES = 256 * 1024
# What stores answer to a URL whose signature has expired.
_EXPIRED = frozenset({400, 401, 403})


class Protocol(Generic[ImageT]):
    """The verbs of one API; see `Client` for the arguments."""

    def __init__(
        self,
        base_url: str,
        image_type: type[ImageT],
        *,
        owner: object,
        retry_s: float,
        on_failure: Callable[[ApiError], None] | None,
    ) -> None:
        self._base_url = base_url
        self._image_type = image_type
        self._owner = owner
        self._retry_s = retry_s
        self._on_failure = on_failure
        self._was_reached = False
        # Fresh URLs of the job that was last asked for them: its images expire together.
        self._fresh: tuple[str, dict[int, str]] = ("", {})

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None) -> Steps[Job]:
        return self._submit(Job, "/v1/inference", request, idempotency_key=idempotency_key)

    def submit_replay(
        self, config: str, *, lora: str | None, images: Mapping[str, str], idempotency_key: str | None
    ) -> Steps[Replay]:
        body = {"config": config, "lora": lora, **({"images": images} if images else {})}
        return self._submit(Replay, "/v1/replays", body, idempotency_key=idempotency_key)

    def submit_images(self, request: Mapping[str, Any], *, idempotency_key: str | None) -> Steps[ImagesJob]:
        # An API of an earlier version answers when the images are finished.
        headers = {"Prefer": "respond-async"}
        path = "/v1/images/generations"
        return self._submit(ImagesJob, path, request, idempotency_key=idempotency_key, headers=headers)

    def status(self, request_id: str) -> Steps[Status]:
        return self._call(Status, Call("GET", _request_path(request_id, "status")))

    def result(self, request_id: str) -> Steps[Result[ImageT]]:
        kind: Any = self._image_type
        result = yield from self._call(Result[kind], Call("GET", _request_path(request_id, "result")))
        for image in result.images:
            image.bind(self._owner, request_id=result.request_id)
        return result

    def cancel(self, request_id: str) -> Steps[Status]:
        return self._call(Status, Call("POST", _request_path(request_id, "cancel")))

    def resend_webhook(self, request_id: str) -> Steps[Status]:
        return self._call(Status, Call("POST", _request_path(request_id, "webhook/resend")))

    def requests(
        self, *, status: str | None, model: str | None, tenant: str | None, page_size: int
    ) -> Listing[JobLine]:
        return self._list(Page[JobLine], "/v1/requests", status=status, model=model, tenant=tenant, limit=page_size)

    def submit_sweep(self, body: Mapping[str, Any], *, idempotency_key: str | None) -> Steps[Sweep]:
        return self._submit(Sweep, "/v1/sweeps", body, idempotency_key=idempotency_key)

    def estimate_sweep(self, body: Mapping[str, Any]) -> Steps[SweepEstimate]:
        headers = {"Content-Type": "application/json"}
        return self._call(SweepEstimate, Call("POST", "/v1/sweeps/estimate", body=_encode(body), headers=headers))

    def sweep_status(self, sweep_id: str) -> Steps[SweepStatus]:
        return self._call(SweepStatus, Call("GET", _sweep_path(sweep_id, "status")))

    def sweep_result(self, sweep_id: str, *, page_size: int) -> Steps[SweepResult[ImageT]]:
        kind: Any = self._image_type
        cells: list[SweepCell[ImageT]] = []
        cursor: str | None = None
        while True:
            call = Call("GET", _sweep_path(sweep_id, "result"), params=_params(limit=page_size, cursor=cursor))
            page = yield from self._call(SweepPage[kind], call)
            for cell in page.cells:
                if cell.image is not None:
                    cell.image.bind(self._owner, request_id=cell.request_id)
            cells += page.cells
            cursor = page.next_cursor
            if not page.has_more:
                # The state as of the last page: a sweep that had ended then had all of these images.
                return SweepResult[kind](
                    sweep_id=page.sweep_id, status=page.status, model=page.model, axes=page.axes, cells=tuple(cells)
                )

    def cancel_sweep(self, sweep_id: str) -> Steps[SweepStatus]:
        return self._call(SweepStatus, Call("POST", _sweep_path(sweep_id, "cancel")))

    def sweeps(self, *, tenant: str | None, page_size: int) -> Listing[SweepLine]:
        return self._list(Page[SweepLine], "/v1/sweeps", tenant=tenant, limit=page_size)

    def models(self) -> Steps[ModelList]:
        return self._call(ModelList, Call("GET", "/v1/models"))

    def adapter(self, path: str, *, model: str) -> Steps[Adapter]:
        return self._call(Adapter, Call("GET", "/v1/adapters", params=_params(path=path, model=model)))

    def adapters(self, *, page_size: int) -> Listing[AdapterFile]:
        return self._list(Page[AdapterFile], "/v1/adapters", limit=page_size)

    def upload_adapter(self, body: FileBody, *, name: str) -> Steps[UploadedAdapter]:
        # With the digest, an attempt whose bytes were damaged on the way is refused, and not stored.
        headers = {"Content-Type": "application/octet-stream", "X-Content-SHA256": body.sha256}
        call = Call("PUT", _upload_path(name), body=body, headers=headers, timeout_s=UPLOAD_TIMEOUT_S)
        stored = yield from self._call(UploadedAdapter, call)
        if (stored.sha256, stored.size_bytes) != (body.sha256, body.size_bytes):
            raise ApiError(f"{body.path} was stored with other bytes, as {stored.path}; delete that, and push it again")
        return stored

    def upload_image(self, file: ImageFile) -> Steps[UploadedImage]:
        sha256 = file.image.sha256
        if len(file.data) >= _WORTH_ASKING_BYTES:
            try:
                return (yield from self._call(UploadedImage, Call("GET", f"/v1/uploads/{sha256}")))
            except ApiError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
        headers = {"Content-Type": file.image.content_type, "X-Content-SHA256": sha256}
        call = Call("POST", "/v1/uploads", body=file.data, headers=headers, timeout_s=UPLOAD_TIMEOUT_S)
        try:
            return (yield from self._call(UploadedImage, call))
        except ApiUnreachable:
            raise
        except ApiError as error:
            # The API does not know the file's name.
            hint = "; or it is older than this client" if error.status == HTTPStatus.NOT_FOUND else ""
            raise ApiError(
                f"{file.name}: {error}{hint}",
                retryable=error.retryable,
                retry_after_s=error.retry_after_s,
                status=error.status,
                problem=error.problem,
            ) from error

    def delete_adapter(self, name: str, *, sha256: str | None) -> Steps[DeletedUploads]:
        return self._call(DeletedUploads, Call("DELETE", _upload_path(name), params=_params(sha256=sha256)))

    def usage(
        self, *, first_day: str | None, last_day: str | None, group_by: Sequence[str], tenant: str | None
    ) -> Steps[Usage]:
        return self._call(Usage, _usage_call(first_day, last_day, group_by, tenant))

    def usage_csv(
        self, *, first_day: str | None, last_day: str | None, group_by: Sequence[str], tenant: str | None
    ) -> Steps[str]:
        call = _usage_call(first_day, last_day, group_by, tenant, format="csv")
        answer = yield from self._repeat(lambda: self._send(call))
        return answer.text

    def slots(self, *, page_size: int) -> Listing[Slot]:
        return self._list(Page[Slot], "/v1/slots", limit=page_size)

    def queue(self, *, limit: int, tenant: str | None) -> Steps[Queue]:
        return self._call(Queue, Call("GET", "/v1/queue", params=_params(limit=limit, tenant=tenant)))

    def wait(
        self, request_id: str, *, timeout_s: float, poll_s: float | None, on_status: Callable[[Status], None] | None
    ) -> Steps[Status]:
        path = _request_path(request_id, "status")
        return self._wait(Status, path, timeout_s=timeout_s, poll_s=poll_s, on_status=on_status)

    def wait_sweep(
        self, sweep_id: str, *, timeout_s: float, poll_s: float | None, on_status: Callable[[SweepStatus], None] | None
    ) -> Steps[SweepStatus]:
        path = _sweep_path(sweep_id, "status")
        return self._wait(SweepStatus, path, timeout_s=timeout_s, poll_s=poll_s, on_status=on_status)

    def _wait(
        self,
        kind: type[StatusT],
        path: str,
        *,
        timeout_s: float,
        poll_s: float | None,
        on_status: Callable[[StatusT], None] | None,
    ) -> Steps[StatusT]:
        deadline = time.monotonic() + timeout_s
        call = Call("GET", path)
        pause_s = _FIRST_POLL_S if poll_s is None else poll_s
        while True:
            answer = yield from self._repeat(lambda: self._send(call), deadline_s=deadline)
            status = parse_answer(answer, kind)
            if on_status is not None:
                on_status(status)
            if status.has_ended:
                return status
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ApiError(
                    f"{status.kind} {status.id} is still {status.status} after {timeout_s:.0f} s; wait longer or cancel"
                )
            yield Pause(min(pause_s, left_s))
            if poll_s is None:
                longest_s = parse_retry_after(answer.headers.get("retry-after", "")) or _LONGEST_POLL_S
                pause_s = min(2 * pause_s, longest_s)

    def download(self, image: ImageInfo | str, receiver: Receiver) -> Steps[None]:
        """Receive an image; `image` is a presigned URL, or an image whose URL is renewed if it has expired.

        A file of this host is read at once: no connection is involved.
        """
        url, is_fresh = (image, True) if isinstance(image, str) else (image.url, False)
        if is_file_url(url) and not receiver.is_complete:
            return receive_file(url, receiver, base_url=self._base_url)
        while not receiver.is_complete:
            try:
                return (yield from self._repeat(lambda url=url: self._fetch(url, receiver)))  # type: ignore[misc]
            except ApiError as error:
                if error.status not in _EXPIRED or is_fresh or isinstance(image, str):
                    raise
                url, is_fresh = yield from self._renew(image, url)
        return None

    def _renew(self, image: ImageInfo, expired: str) -> Steps[tuple[str, bool]]:
        """Return another URL of an image, and whether it is fresh; one that was fetched before may have expired too."""
        request_id, urls = self._fresh
        is_fresh = request_id != image.request_id or urls.get(image.index, expired) == expired
        if is_fresh:
            result = yield from self.result(image.request_id)
            urls = {found.index: found.url for found in result.images}
            self._fresh = (image.request_id, urls)
        if image.index not in urls:
            raise DownloadFailed(f"request {image.request_id} has no image {image.index} any more")
        return urls[image.index], is_fresh

    def _fetch(self, url: str, receiver: Receiver) -> Steps[None]:
        # The query string is the signature: anyone who reads it in a log can fetch the image.
        name = url.partition("?")[0]
        while True:
            # Ranges count the bytes of the object, which a compressed answer does not have.
            headers = {"Accept-Encoding": "identity"}
            if receiver.size_bytes:
                headers["Range"] = f"bytes={receiver.size_bytes}-"
            try:
                answer = yield Fetch(url, headers, receiver)
            except httpx2.RequestError as error:
                # Without the object's name: an outage of the store gives the same message for each image.
                store = name.partition("://")[2].partition("/")[0]
                message = (
                    f"the store at {store} cannot be reached: {error}; check the network, and whether the API's "
                    "FLUX2_S3_PUBLIC_ENDPOINT_URL is an address that this host reaches"
                )
                raise connection_failure(error, message, was_reached=True) from error
            is_beyond = answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and "Range" in headers
            if not is_beyond:
                raise_if_withheld(answer, name=name)
            fault = receiver.find_fault()
            if fault is None and not is_beyond:
                return
            was_resumed = is_beyond or receiver.resumed
            receiver.restart()
            if not was_resumed:
                raise DownloadFailed(f"{name}: {fault}; the object or a proxy in front of the store is damaged")

    def _submit(
        self,
        kind: type[AnswerT],
        path: str,
        body: Mapping[str, Any],
        *,
        idempotency_key: str | None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Steps[AnswerT]:
        # One key for all attempts: the job of an attempt whose answer was lost is found again.
        key = idempotency_key or uuid.uuid4().hex
        if not (key.isascii() and key.isprintable()):
            raise ApiError(f"the idempotency key {key!r} cannot be sent; use ASCII letters, digits and punctuation")
        sent = {**headers, "Idempotency-Key": key, "Content-Type": "application/json"}
        return self._call(kind, Call("POST", path, body=_encode(body), headers=sent))

    def _list(self, kind: type[Page[LineT]], path: str, **query: str | int | None) -> Listing[LineT]:
        return Listing(lambda cursor: self._call(kind, Call("GET", path, params=_params(**query, cursor=cursor))))

    def _call(self, kind: type[AnswerT], call: Call) -> Steps[AnswerT]:
        answer = yield from self._repeat(lambda: self._send(call))
        return parse_answer(answer, kind)

    def _repeat(self, call: Callable[[], Steps[T]], *, deadline_s: float | None = None) -> Steps[T]:
        last_s = time.monotonic() + self._retry_s if deadline_s is None else deadline_s
        return repeat_call(call, deadline_s=last_s, on_failure=self._on_failure)

    def _send(self, call: Call) -> Steps[httpx2.Response]:
        try:
            answer: httpx2.Response = yield call
        except httpx2.RequestError as error:
            message = f"{self._base_url} cannot be reached: {error}; check the URL and the API"
            raise connection_failure(error, message, was_reached=self._was_reached) from error
        self._was_reached = True
        raise_if_refused(answer)
        return answer


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise ApiError(f"the request cannot be sent as JSON: {error}") from error


def _request_path(request_id: str, verb: str) -> str:
    # An empty variable of a shell, or a folder of the URL, would name another path.
    if not request_id.strip("."):
        raise ApiError(f"{request_id!r} is no id of a job; `flux2 list` shows the ids")
    return f"/v1/requests/{_quote_id(request_id)}/{verb}"


def _sweep_path(sweep_id: str, verb: str) -> str:
    if not sweep_id.strip("."):
        raise ApiError(f"{sweep_id!r} is no id of a sweep; `flux2 sweep list` shows the ids")
    return f"/v1/sweeps/{_quote_id(sweep_id)}/{verb}"


def _quote_id(text: str) -> str:
    # So that no id can name another path.
    return quote(text, safe="", errors="replace")


def _upload_path(name: str) -> str:
    if not UPLOAD_NAME.fullmatch(name):
        raise ApiError(
            f"{name!r} cannot name an upload; use up to 128 letters, digits, '.', '_' and '-', and begin with a letter "
            "or a digit"
        )
    return f"/v1/adapters/{name}"


def _usage_call(
    first_day: str | None, last_day: str | None, group_by: Sequence[str], tenant: str | None, **options: str
) -> Call:
    days = {"from": first_day, "to": last_day}
    return Call("GET", "/v1/usage", params=_params(**days, group_by=",".join(group_by), tenant=tenant, **options))


def _params(**values: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in values.items() if value is not None}
