"""The one place that knows HTTP status codes of our errors, and writes them as RFC 9457 problem details."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from api.schemas import FieldProblem, Problem
from shared import errors

logger = logging.getLogger("flux2.api")

#: By class, nearest in the tree first. The reference API answers 400 for what it names; the rest is 422.
_STATUS: dict[type[errors.Flux2Error], HTTPStatus] = {
    errors.RequestNotFound: HTTPStatus.NOT_FOUND,
    errors.AdapterRefused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.IdempotencyKeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.RequestError: HTTPStatus.BAD_REQUEST,
    errors.QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.LedgerUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StorageUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

# Seconds a client should wait before it asks again.
_RETRY_AFTER_S = {HTTPStatus.TOO_MANY_REQUESTS: 30, HTTPStatus.SERVICE_UNAVAILABLE: 2}

MEDIA_TYPE = "application/problem+json"


def problem(
    status: HTTPStatus, code: str, detail: str, *, fields: Sequence[FieldProblem] = (), headers: Mapping[str, str] = {}
) -> JSONResponse:
    """Write one problem."""
    body = Problem(
        type=f"urn:flux2:problem:{code.lower()}",
        title=status.phrase,
        status=status,
        detail=detail,
        code=code,
        errors=list(fields),
    )
    retry = {"Retry-After": str(_RETRY_AFTER_S[status])} if status in _RETRY_AFTER_S else {}
    return JSONResponse(body.model_dump(), status, headers={**retry, **headers}, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of this application as a problem."""
    app.add_exception_handler(errors.Flux2Error, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.Flux2Error)
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), HTTPStatus.INTERNAL_SERVER_ERROR)
    field = getattr(error, "field", None)
    fields = [FieldProblem(path=field, message=str(error))] if field else []
    return problem(status, error.code, str(error), fields=fields)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = [FieldProblem(path=_path(e["loc"]), message=e["msg"]) for e in error.errors()]
    if any(e["type"] == "json_invalid" for e in error.errors()):
        return problem(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", f"the body is no JSON: {fields[0].message}")
    first = f"{fields[0].path}: {fields[0].message}"
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "VALIDATION_ERROR", first + more, fields=fields)


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    return problem(status, status.name, str(error.detail), headers=error.headers or {})


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("unexpected error", exc_info=error, extra={"method": request.method, "path": request.url.path})
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "An unexpected error occurred; it was logged.")


def _path(location: Sequence[str | int]) -> str:
    """Write pydantic's location as a JSON path: ("body", "prompts", 0, "width") is prompts[0].width."""
    parts = location[1:] if location[:1] == ("body",) else location
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or "body"
