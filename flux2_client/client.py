"""A small synchronous client of the HTTP API.

Methods that return a dictionary return the JSON body of the API's answer; `/docs` describes its fields.

Every call can be repeated safely: reads change nothing, a second cancel changes nothing, and a submit carries an
Idempotency-Key. The client therefore repeats a call whose answer was lost, or that the API could not serve yet.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import httpx2

from flux2_client.answers import connection_failure, parse_body, raise_if_refused
from flux2_client.retries import repeat_call
from shared.errors import ApiError

T = TypeVar("T")

#: A job in one of these states never changes again.
FINAL_STATES = frozenset({"succeeded", "failed", "canceled"})

_DOWNLOAD_TIMEOUT_S = 60.0


class Client:
    """Talks to one API over one pool of connections; close it with a `with` block.

    Every method raises `ApiError` when the API refuses the call or cannot be reached for `retry_s`. An address that has
    never answered is not tried again if nothing listens there, because it is probably mistyped.

    Args:
        base_url: e.g. `http://127.0.0.1:8000`.
        timeout_s: limit for connecting, and for each read and write.
        retry_s: seconds for which a call is repeated while the API is away or the queue is full; 0 makes each call
            once. The waits between attempts grow to half a minute, or are as long as the API's `Retry-After`.
        on_failure: called with the error before each repeat; an exception that it raises ends the call.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 30.0,
        retry_s: float = 60.0,
        on_failure: Callable[[ApiError], None] | None = None,
    ) -> None:
        self._http = httpx2.Client(base_url=base_url, timeout=timeout_s)
        self._retry_s = retry_s
        self._on_failure = on_failure
        self._was_reached = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Submit a job; the answer has its `request_id`.

        Args:
            idempotency_key: with the same key and request, a later call returns the same job for 24 hours. Default: a
                key for this call only.
        """
        return self._submit("/v1/inference", request, idempotency_key=idempotency_key)

    def submit_replay(
        self, config: str, *, lora: str | None = None, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Submit the jobs that reproduce the sample previews of a training config.

        Args:
            config: the config file's text, YAML or JSON.
            lora: adapter under the adapter root; None selects `{name}/{name}.safetensors` with the config's name.
            idempotency_key: as in `submit`.
        """
        return self._submit("/v1/replays", {"config": config, "lora": lora}, idempotency_key=idempotency_key)

    def status(self, request_id: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/requests/{request_id}/status")

    def result(self, request_id: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/requests/{request_id}/result")

    def cancel(self, request_id: str) -> dict[str, Any]:
        """Cancel the unfinished images of a job; return the job's status."""
        return self._call("POST", f"/v1/requests/{request_id}/cancel")

    def wait(
        self,
        request_id: str,
        *,
        timeout_s: float,
        poll_s: float = 0.25,
        on_status: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Poll until the job ends; return its last status. The API may be away for any part of `timeout_s`.

        Args:
            on_status: called with every status, including the last one; an exception that it raises ends the wait.

        Raises:
            ApiError: the job did not end within `timeout_s`, or the API does not know it.
        """
        deadline = time.monotonic() + timeout_s
        path = f"/v1/requests/{request_id}/status"
        while True:
            status = self._call("GET", path, deadline_s=deadline)
            if on_status is not None:
                on_status(status)
            if status["status"] in FINAL_STATES:
                return status
            if time.monotonic() >= deadline:
                raise ApiError(
                    f"request {request_id} is still {status['status']} after {timeout_s:.0f} s; wait longer or cancel"
                )
            time.sleep(poll_s)

    def download(self, url: str) -> bytes:
        """Download an image from its presigned URL.

        Raises:
            ApiError: the object store refuses, or cannot be reached for `retry_s`.
        """
        return self._repeat(lambda: _download(url))

    def _submit(self, path: str, body: Mapping[str, Any], *, idempotency_key: str | None) -> dict[str, Any]:
        # One key for all attempts: the job of an attempt whose answer was lost is found again.
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._call("POST", path, json=body, headers=headers)

    def _call(self, method: str, path: str, *, deadline_s: float | None = None, **options: Any) -> dict[str, Any]:
        return self._repeat(lambda: parse_body(self._send(method, path, **options)), deadline_s=deadline_s)

    def _repeat(self, call: Callable[[], T], *, deadline_s: float | None = None) -> T:
        last_s = time.monotonic() + self._retry_s if deadline_s is None else deadline_s
        return repeat_call(call, deadline_s=last_s, on_failure=self._on_failure)

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            message = f"{self._http.base_url} cannot be reached: {error}; check the URL and the API"
            raise connection_failure(error, message, was_reached=self._was_reached) from error
        self._was_reached = True
        return answer


def _download(url: str) -> bytes:
    # The query string is the signature: anyone who reads it in a log can fetch the image.
    name = url.partition("?")[0]
    try:
        # Not with the client's connections: the store is another host and must not get the API's headers.
        answer = httpx2.get(url, timeout=_DOWNLOAD_TIMEOUT_S)
    except httpx2.TransportError as error:
        raise connection_failure(error, f"{name}: {error}", was_reached=True) from error
    raise_if_refused(answer, name=name)
    return answer.content
