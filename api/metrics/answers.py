"""Count the API's answers and their times by endpoint."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.types import Scope

from shared.metrics.definitions import HTTP_ANSWERS, HTTP_SECONDS
from shared.metrics.tally import PROCESS, Tally

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Instead of paths and methods that callers invent: each would be a series.
_OTHER: Final = "other"


def count_answer(scope: Scope, status: int, *, seconds: float, tally: Tally = PROCESS) -> None:
    """Count an answer; `status` is 0 if the caller was gone before it."""
    route = scope.get("route")
    path = _OTHER if route is None else route.path
    is_known = scope["method"] in _METHODS and status != HTTPStatus.METHOD_NOT_ALLOWED
    method = scope["method"] if is_known else _OTHER
    tally.count(HTTP_ANSWERS, method, path, str(status))
    tally.observe(HTTP_SECONDS, seconds, method, path)
