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
        QueueError: `base_url` is no http or https address, or the key cannot be sent.
    """

    def __init__(self, base_url: str, *, api_key: str | None, pause: Callable[[float], None]) -> None:
        if not _is_address(base_url):
            raise QueueError(f"{base_url!r} is no address of flux2-queue; set FLUX2_CLIENT_URL=http://HOST:8000")
        # The library's own error would show the key.
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise QueueError("FLUX2_API_KEY holds a space, a line break or a character beyond ASCII; copy it again")
        self._base_url = base_url.rstrip("/")
        self._key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._pause = pause
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._was_reached = False

    def upload(self, png: bytes) -> str:
        """Store a reference image; return the text that names it in a request."""
        return str(self._call_for("path", "POST", "/v1/uploads", png, {"Content-Type": "image/png"})["path"])

    def submit(self, request: Mapping[str, Any]) -> str:
        """Submit a job; return its id."""
        # With the key, a repeat after an answer that was lost finds the job of the first attempt.
        headers = {**_JSON, "Idempotency-Key": uuid.uuid4().hex}
        body = json.dumps(request).encode()
        return str(self._call_for("request_id", "POST", "/v1/inference", body, headers)["request_id"])

    def status(self, request_id: str) -> dict[str, Any]:
        return self._call_for("status", "GET", f"/v1/requests/{request_id}/status")

    def cancel(self, request_id: str) -> None:
        """Cancel the unfinished images of a job; the call is made once."""
        # Without a type, the library would declare a form.
        self._call("POST", f"/v1/requests/{request_id}/cancel", b"", _JSON, patience_s=0)

    def images(self, request_id: str) -> list[bytes]:
        """Return the files of a job's finished images, in the order of the request.

        They come through the API, in one archive: this host need not reach the store.
        """
        data = self._call("GET", f"/v1/requests/{request_id}/archive")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return [archive.read(image["file"]) for image in json.loads(archive.read("parameters.json"))["images"]]
        except zipfile.BadZipFile as error:
            raise QueueError(
                f"the images of request {request_id} did not arrive whole; run the workflow again, or get them with "
                f"flux2 wait {request_id} --output FOLDER"
            ) from error

    def _call_for(self, name: str, *call: Any) -> dict[str, Any]:
        """Make a call whose answer is a JSON object that has a member of this name."""
        data = self._call(*call)
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or name not in answer:
            raise QueueError(f"{self._base_url} does not answer as flux2-queue does; check FLUX2_CLIENT_URL")
        return answer

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
                # An address where nothing listens is probably wrong. Errors after connecting have another class.
                is_transient = self._was_reached or not isinstance(error, urllib.error.URLError)
            if not is_transient or time.monotonic() + wait_s > deadline_s:
                raise refusal
            self._pause(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _is_address(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        # Reading the port checks it.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:
        return False


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
