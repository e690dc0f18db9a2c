"""A small client of the HTTP API, for the command line, the demo and tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import httpx2

from shared.errors import ApiError

#: States in which a job stays.
ENDED = frozenset({"succeeded", "failed", "canceled"})


class Client:
    """Talks to one API.

    Args:
        base_url: e.g. `http://127.0.0.1:8000`.
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
        """POST a job; returns the 202 body."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._ask("POST", "/v1/inference", json=request, headers=headers)

    def replay(self, config: str, *, lora: str | None = None) -> dict[str, Any]:
        """POST a training config's text; returns the 202 body."""
        return self._ask("POST", "/v1/replays", json={"config": config, "lora": lora})

    def status(self, request_id: str) -> dict[str, Any]:
        return self._ask("GET", f"/v1/requests/{request_id}/status")

    def result(self, request_id: str) -> dict[str, Any]:
        return self._ask("GET", f"/v1/requests/{request_id}/result")

    def cancel(self, request_id: str) -> dict[str, Any]:
        return self._ask("POST", f"/v1/requests/{request_id}/cancel")

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            return _body(self._http.request(method, path, **options))
        except httpx2.TransportError as error:
            raise ApiError(f"{self._http.base_url} cannot be reached: {error}") from error

    def wait(
        self,
        request_id: str,
        *,
        timeout_s: float,
        poll_s: float = 0.25,
        on_status: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Poll until the job has ended; returns its last status.

        Raises:
            ApiError: it had not ended after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status(request_id)
            if on_status is not None:
                on_status(status)
            if status["status"] in ENDED:
                return status
            if time.monotonic() > deadline:
                raise ApiError(f"request {request_id} is {status['status']} after {timeout_s:.0f} s")
            time.sleep(poll_s)

    def download(self, url: str) -> bytes:
        """Fetch an image by its presigned URL.

        Raises:
            ApiError: the store does not give it.
        """
        unsigned = url.partition("?")[0]
        try:
            answer = httpx2.get(url, timeout=60)
        except httpx2.TransportError as error:
            raise ApiError(f"{unsigned}: {error}") from error
        if answer.is_error:
            raise ApiError(f"{unsigned}: {answer.status_code} {answer.reason_phrase}")
        return answer.content


def _body(answer: httpx2.Response) -> dict[str, Any]:
    if answer.is_error:
        is_problem = answer.headers.get("content-type") == "application/problem+json"
        detail = answer.json() if is_problem else {"code": answer.status_code, "detail": answer.text[:200]}
        raise ApiError(f"{detail['code']}: {detail['detail']}")
    try:
        body: dict[str, Any] = answer.json()
    except ValueError as error:
        raise ApiError(f"{answer.url} answers with something else than this API does") from error
    return body
