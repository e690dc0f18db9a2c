"""Turn the answers of a server, and the failures to get one, into typed objects and errors."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel, ValidationError

from shared.errors import ApiError, ApiUnreachable, DownloadFailed

AnswerT = TypeVar("AnswerT", bound=BaseModel)

# Statuses of a server, or of a proxy in front of it, while something that it needs is away.
_TRANSIENT = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
# A limit of a key that ends with the day; a person should know now.
_LIMIT_REACHED = "key_limit_reached"
_LONGEST_WAIT_S = 900.0
# The API's code for a path that it does not have; what a path names has codes of its own.
_NO_SUCH_PATH = "NOT_FOUND"
_NOT_CONNECTED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)
# Another attempt would fail in the same way.
_PERMANENT = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)


def require_address(base_url: str) -> None:
    """Raise `ApiUnreachable` unless the text can be the address of an API."""
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        # An unsound port raises when it is read.
        is_address = is_address and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ApiUnreachable(f"{base_url!r} is no address of an API; write it like http://127.0.0.1:8000")


def bearer(api_key: str | None) -> dict[str, str]:
    """Return the headers that send an API key."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def parse_answer(answer: httpx2.Response, kind: type[AnswerT]) -> AnswerT:
    """Return the body of a successful answer as an object of `kind`.

    Raises:
        ApiError: the answer is not from this API, or from a version of it that lacks a field.
    """
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        if not field:
            raise ApiError(f"{answer.url} did not answer with JSON, so it is not this API; check the URL") from error
        raise ApiError(
            f"{answer.url} answered without a usable {field!r}; check the URL, and whether the API is older than this "
            "client"
        ) from error


def raise_if_refused(answer: httpx2.Response) -> None:
    """Raise `ApiError` if the API refuses a call, or if another server answers."""
    if answer.has_redirect_location:
        # Not followed: the request may hold what its sender meant for this address only.
        raise ApiError(
            f"{answer.url} redirects to {answer.headers['location']}; use the address that does not redirect"
        )
    if answer.is_error:
        message, problem = _read_problem(answer)
        wait_s = parse_retry_after(answer.headers.get("retry-after", "").strip()) or 0.0
        # Only of a key: a proxy may announce hours of maintenance to a command that waits for days.
        is_used_up = problem.get("code") == _LIMIT_REACHED and wait_s > _LONGEST_WAIT_S
        is_transient = answer.status_code in _TRANSIENT and not is_used_up
        raise _refusal(answer, message + _key_hint(answer), is_transient=is_transient, problem=problem)


def raise_if_withheld(answer: httpx2.Response, *, name: str) -> None:
    """Raise `DownloadFailed` if an object's store does not give the object.

    The message shows `name`, because the URL may hold a signature.
    """
    # A redirect, as to the region of a bucket, has a body that is not the object.
    if not answer.is_success:
        # S3 asks for a repeat after a 500; of the API it is a defect.
        is_transient = answer.status_code in _TRANSIENT | {HTTPStatus.INTERNAL_SERVER_ERROR}
        message = f"{name}: {answer.status_code} {answer.reason_phrase}"
        raise _refusal(answer, message, is_transient=is_transient, kind=DownloadFailed)


def connection_failure(error: httpx2.RequestError, message: str, *, was_reached: bool) -> ApiUnreachable:
    """Return the error of a request without an answer.

    Args:
        was_reached: whether this address answered before. One that never did and takes no connection is probably
            mistyped, so the call is not repeated.
    """
    is_final = isinstance(error, _PERMANENT) or (isinstance(error, _NOT_CONNECTED) and not was_reached)
    return ApiUnreachable(message, retryable=not is_final)


def parse_retry_after(value: str) -> float | None:
    """Return the seconds of a `Retry-After` header, which holds a number or a date; None if it holds neither."""
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    # A year beyond any date overflows.
    except (ValueError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _refusal(
    answer: httpx2.Response,
    message: str,
    *,
    is_transient: bool,
    problem: Mapping[str, Any] | None = None,
    kind: type[ApiError] = ApiError,
) -> ApiError:
    return kind(
        message,
        retryable=is_transient,
        retry_after_s=parse_retry_after(answer.headers.get("retry-after", "").strip()),
        status=answer.status_code,
        problem=problem,
    )


def _address_hint(url: httpx2.URL) -> str:
    """Say how to write the address of the API, which has no such path."""
    path, origin = url.copy_with(query=None), url.copy_with(raw_path=b"")
    return f"; {path} is no path of the API, so check its address, which is written like {origin}, without /v1"


def _key_hint(answer: httpx2.Response) -> str:
    if answer.status_code != HTTPStatus.UNAUTHORIZED:
        return ""
    if "authorization" in answer.request.headers:
        return "; this key came from --api-key, FLUX2_API_KEY, the profile's api_key, or the api_key of Client"
    return (
        "; set FLUX2_API_KEY, write api_key into the profile in ~/.config/flux2/config.toml, or pass api_key to Client"
    )


def _read_problem(answer: httpx2.Response) -> tuple[str, Mapping[str, Any]]:
    """Return a message of the code and the detail of an answer that is an error, and its whole body with both."""
    try:
        body = answer.json()
        # Of OpenAI's interface, whose errors have their own form.
        problem = {"code": body["error"]["code"], "detail": body["error"]["message"]} if "error" in body else body
        hint = _address_hint(answer.url) if problem["code"] == _NO_SUCH_PATH else ""
        return f"{problem['code']}: {problem['detail']}{hint}", {**body, **problem}
    except (ValueError, KeyError, TypeError):
        # A proxy in front of the API, or another server, answers in its own format.
        text = " ".join(answer.text[:200].split())
        return f"{answer.url} answered {answer.status_code}, not in the format of this API; check the URL: {text}", {}
