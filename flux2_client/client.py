"""A small synchronous client of the HTTP API.

Methods that return a dictionary return the JSON body of the API's answer; `/docs` describes its fields.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import httpx2

from shared.errors import ApiError

#: A job in one of these states never changes again.
FINAL_STATES = frozenset({"succeeded", "failed", "canceled"})

_DOWNLOAD_TIMEOUT_S = 60.0


class Client:
    """Talks to one API over one pool of connections; close it with a `with` block.

    Every method raises `ApiError` when the API refuses the call or cannot be reached.

    Args:
        base_url: e.g. `http://127.0.0.1:8000`.
        timeout_s: limit for connecting, and for each read and write.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 30.0) -> None:
        self._http = httpx2.Client(base_url=base_url, timeout=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Submit a job; the answer has its `request_id`. With a key the call can be repeated safely for 24 hours."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._call("POST", "/v1/inference", json=request, headers=headers)

    def submit_replay(self, config: str, *, lora: str | None = None) -> dict[str, Any]:
        """Submit the jobs that reproduce the sample previews of a training config.

        Args:
            config: the config file's text, YAML or JSON.
            lora: adapter under the adapter root; None selects `{name}/{name}.safetensors` with the config's name.
        """
        return self._call("POST", "/v1/replays", json={"config": config, "lora": lora})

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
        """Poll until the job ends; return its last status.

        Args:
            on_status: called with every status, including the last one; an exception that it raises ends the wait.

        Raises:
            ApiError: the job did not end within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status(request_id)
            if on_status is not None:
                on_status(status)
            if status["status"] in FINAL_STATES:
                return status
            if time.monotonic() > deadline:
                raise ApiError(
                    f"request {request_id} is still {status['status']} after {timeout_s:.0f} s; wait longer or cancel"
                )
            time.sleep(poll_s)

    def download(self, url: str) -> bytes:
        """Download an image from its presigned URL.

        Raises:
            ApiError: the object store refuses or cannot be reached.
        """
        # The query string is the signature: anyone who reads it in a log can fetch the image.
        unsigned = url.partition("?")[0]
        try:
            # Not through `self._http`: the store is another host and must not get the API's headers.
            answer = httpx2.get(url, timeout=_DOWNLOAD_TIMEOUT_S)
        except httpx2.TransportError as error:
            raise ApiError(f"{unsigned}: {error}") from error
        if answer.is_error:
            raise ApiError(f"{unsigned}: {answer.status_code} {answer.reason_phrase}")
        return answer.content

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            return _parse_body(self._http.request(method, path, **options))
        except httpx2.TransportError as error:
            raise ApiError(f"{self._http.base_url} cannot be reached: {error}; check the URL and the API") from error


def _parse_body(answer: httpx2.Response) -> dict[str, Any]:
    if answer.is_error:
        # A proxy in front of the API answers in its own format.
        is_problem = answer.headers.get("content-type") == "application/problem+json"
        detail = answer.json() if is_problem else {"code": answer.status_code, "detail": answer.text[:200]}
        raise ApiError(f"{detail['code']}: {detail['detail']}")
    try:
        body: dict[str, Any] = answer.json()
    except ValueError as error:
        raise ApiError(f"{answer.url} did not answer with JSON, so it is not this API; check the URL") from error
    return body
