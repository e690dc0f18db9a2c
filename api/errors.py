"""Answer every error as RFC 9457 problem details. Only this module maps the project's errors to HTTP statuses."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.json_body import describe_json_fault, describe_unreadable_body
from api.schemas.problems import FieldProblem, Problem
from shared import errors

logger = logging.getLogger("flux2.api")

#: An error has the status of its nearest ancestor here. The reference API answers 400 for its codes; codes that only
#: this project has are 422.
_STATUS: dict[type[errors.Flux2Error], HTTPStatus] = {
    errors.KeyMissing: HTTPStatus.UNAUTHORIZED,
    errors.KeyInvalid: HTTPStatus.UNAUTHORIZED,
    errors.TooManyFailures: HTTPStatus.TOO_MANY_REQUESTS,
    errors.KeyLimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    errors.AccessRefused: HTTPStatus.FORBIDDEN,
    errors.RequestNotFound: HTTPStatus.NOT_FOUND,
    errors.KeyNotFound: HTTPStatus.NOT_FOUND,
    errors.KeyInUse: HTTPStatus.CONFLICT,
    errors.UploadNotFound: HTTPStatus.NOT_FOUND,
    errors.UploadInUse: HTTPStatus.CONFLICT,
    errors.WebhookWaiting: HTTPStatus.CONFLICT,
    errors.UploadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UploadIncomplete: HTTPStatus.REQUEST_TIMEOUT,
    errors.LengthRequired: HTTPStatus.LENGTH_REQUIRED,
    errors.DigestMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ContentTypeRefused: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.AdapterRefused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ReferenceRefused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ReferencesNeeded: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.SourceChanged: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NoSuitableWorker: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.IdempotencyKeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.RequestError: HTTPStatus.BAD_REQUEST,
    errors.QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyListeners: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyArchives: HTTPStatus.TOO_MANY_REQUESTS,
    errors.UploadsBusy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.AdapterCheckBusy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ReferenceCheckBusy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.WaitsBusy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ImagesUnfinished: HTTPStatus.GATEWAY_TIMEOUT,
    errors.LedgerUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StorageUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.SourceUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

# Seconds: a full queue takes longer to drain than Redis or the storage takes to come back.
_RETRY_AFTER_S = {HTTPStatus.TOO_MANY_REQUESTS: 30, HTTPStatus.SERVICE_UNAVAILABLE: 2}

# Fields at fault that an answer lists: one for each prompt of the largest request.
_MAX_FIELDS = 1000

MEDIA_TYPE = "application/problem+json"

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def problem_response(
    status: HTTPStatus,
    code: str,
    detail: str,
    *,
    fields: Sequence[FieldProblem] = (),
    images: Sequence[str] = (),
    headers: Mapping[str, str] = {},
) -> JSONResponse:
    """Build the answer for one problem; 429 and 503 get a `Retry-After`."""
    body = Problem(
        type=f"urn:flux2:problem:{code.lower()}",
        title=status.phrase,
        status=status,
        detail=detail,
        code=code,
        errors=list(fields),
        images=list(images),
    )
    retry = {"Retry-After": str(_RETRY_AFTER_S[status])} if status in _RETRY_AFTER_S else {}
    return JSONResponse(body.model_dump(), status, headers={**retry, **headers}, media_type=MEDIA_TYPE)


def install_error_handlers(app: FastAPI) -> None:
    """Make the application answer every error as a problem, including FastAPI's own errors and defects."""
    app.add_exception_handler(errors.Flux2Error, _answer_project_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, answer_defect)


def _answer_project_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.Flux2Error)
    return problem_of(error)


def status_of(kind: type[errors.Flux2Error]) -> HTTPStatus:
    """Return the status of the answer to a call that raises such an error."""
    return next((_STATUS[each] for each in kind.__mro__ if each in _STATUS), HTTPStatus.INTERNAL_SERVER_ERROR)


def problem_of(error: errors.Flux2Error) -> JSONResponse:
    """Build the answer for one of the project's errors."""
    status = status_of(type(error))
    field = getattr(error, "field", None)
    fields = [FieldProblem(path=field, message=str(error))] if field else []
    images = error.images if isinstance(error, errors.ReferencesNeeded) else ()
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if (retry_after_s := getattr(error, "retry_after_s", None)) is not None:
        headers["Retry-After"] = str(retry_after_s)
    return problem_response(status, error.code, str(error), fields=fields, images=images, headers=headers)


def _answer_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    # pydantic puts these words before the message of a rule that is a function.
    fields = [
        FieldProblem(path=_json_path(e["loc"]), message=e["msg"].removeprefix("Value error, "))
        for e in found[:_MAX_FIELDS]
    ]
    if found[0]["type"] == "json_invalid":
        detail = describe_json_fault(error.body, found[0]["loc"][-1], found[0]["ctx"]["error"])
        return problem_response(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", detail)
    first = f"{fields[0].path}: {fields[0].message}"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, "VALIDATION_ERROR", first + more, fields=fields)


def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that FastAPI raises itself: an unknown path, a wrong method, or a body that it cannot parse."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = describe_unreadable_body(error.__cause__) or str(error.detail)
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return problem_response(status, status.name, detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of a path; the framework names those of the first endpoint alone."""
    routes = request.app.router.routes
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def answer_defect(request: Request, error: Exception) -> JSONResponse:
    """Log an unexpected error, and build its answer."""
    logger.error("unexpected error", exc_info=error, extra={"method": request.method, "path": request.url.path})
    # No more than this: a traceback may hold paths and secrets.
    detail = "An unexpected error occurred. The server's log has the details; report it if it happens again."
    return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail)


def _json_path(location: Sequence[str | int]) -> str:
    """Write pydantic's location as a JSON path: ("body", "prompts", 0, "width") becomes prompts[0].width."""
    parts = location[1:] if location[:1] == ("body",) else location
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or "body"
