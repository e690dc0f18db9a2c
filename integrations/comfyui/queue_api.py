"""Calls of flux2-queue's HTTP API with Python's own library: nodes should install nothing into ComfyUI."""

from __future__ import annotations

import http.client
import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

_TIMEOUT_S = 30.0
# Longer than a restart of the API takes.
_PATIENCE_S = 60.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_TRANSIENT = frozenset({408, 429, 502, 503, 504})
_JSON = {"Content-Type": "application/json"}


class QueueError(RuntimeError):
    """The service refused a call, cannot be reached, or did not render an image."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: the library would send the API key to the other address too."""

    def redirect_request(self, *_: Any) -> None:
        return None


class QueueApi:
    """One service, at an address such as `http://127.0.0.1:8000`.

    Args:
        pause: waits so many seconds; an exception that it raises ends a call that is repeated.

    Raises:
        QueueError: `base_url` is no http or https address.
    """

    def __init__(self, base_url: str, *, api_key: str | None, pause: Callable[[float], None]) -> None:
        if urllib.parse.urlsplit(base_url).scheme not in ("http", "https"):
            raise QueueError(f"{base_url!r} is no address of flux2-queue; set FLUX2_CLIENT_URL=http://HOST:8000")
        self._base_url = base_url.rstrip("/")
        self._key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._pause = pause
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._was_reached = False

    def upload(self, png: bytes) -> str:
        """Store a reference image; return the text that names it in a request."""
        stored = self._call("POST", "/v1/uploads", png, {"Content-Type": "image/png"})
        return str(json.loads(stored)["path"])

    def submit(self, request: Mapping[str, Any]) -> str:
        """Submit a job; return its id."""
        # With the key, a repeat after an answer that was lost finds the job of the first attempt.
        headers = {**_JSON, "Idempotency-Key": uuid.uuid4().hex}
        accepted = self._call("POST", "/v1/inference", json.dumps(request).encode(), headers)
        return str(json.loads(accepted)["request_id"])

    def status(self, request_id: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self._call("GET", f"/v1/requests/{request_id}/status"))
        return status

    def cancel(self, request_id: str) -> None:
        """Cancel the unfinished images of a job; the call is made once."""
        # Without a type, the library would declare a form.
        self._call("POST", f"/v1/requests/{request_id}/cancel", b"", _JSON, patience_s=0)

    def images(self, request_id: str) -> list[bytes]:
        """Return the files of a job's finished images, in the order of the request.

        They come through the API, in one archive: this host need not reach the store.
        """
        with zipfile.ZipFile(io.BytesIO(self._call("GET", f"/v1/requests/{request_id}/archive"))) as archive:
            return [archive.read(image["file"]) for image in json.loads(archive.read("parameters.json"))["images"]]

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        patience_s: float = _PATIENCE_S,
    ) -> bytes:
        request = urllib.request.Request(self._base_url + path, body, {**self._key, **(headers or {})}, method=method)
        deadline_s = time.monotonic() + patience_s
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                    data: bytes = answer.read()
                    self._was_reached = True
                    return data
            except urllib.error.HTTPError as error:
                self._was_reached = True
                refusal, is_transient = _explain(error), error.code in _TRANSIENT
                wait_s = _retry_after_s(error) or wait_s
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                refusal = QueueError(
                    f"flux2-queue at {self._base_url} cannot be reached: {reason}; start it, or set FLUX2_CLIENT_URL"
                )
                # An address that never answered is probably wrong.
                is_transient = self._was_reached
            if not is_transient or time.monotonic() + wait_s > deadline_s:
                raise refusal
            self._pause(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _explain(error: urllib.error.HTTPError) -> QueueError:
    if 300 <= error.code < 400:
        return QueueError(f"{error.url} redirects to {error.headers['location']}; set FLUX2_CLIENT_URL to that address")
    try:
        problem = json.loads(error.read())
        message = f"{problem['code']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return QueueError(f"{error.url} answered {error.code}, not as flux2-queue does; check FLUX2_CLIENT_URL")
    return QueueError(message + ("; set FLUX2_API_KEY" if error.code == 401 else ""))


def _retry_after_s(error: urllib.error.HTTPError) -> float | None:
    value = error.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None
