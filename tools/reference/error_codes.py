"""The list of error codes: statuses and retries come from the code, the explanations from `error_texts`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

from api.errors import status_of
from shared import errors
from tools.reference.error_texts import TEXTS

_ROOT: Final = Path(__file__).parents[2]
#: Errors of commands and of the start of a process, and those that are caught: no caller of the API meets their codes.
_OWN: Final = (
    errors.CommandError,
    errors.CheckpointError,
    errors.HeaderFault,
    errors.NotPinned,
    errors.ServerFailed,
    errors.SigningFailed,
)
#: The calls that `_origin_of_call` reads.
_WRITERS: Final = re.compile("ItemError|InvalidRequest|problem_response")
#: What the framework answers; the code is the name of the status.
_FRAMEWORK: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)


class _Origin(NamedTuple):
    """Where a code comes from; an error of images alone has no status."""

    status: HTTPStatus | None
    retryable: bool


def write_list() -> str:
    """Return a heading for each code, with its status, when it comes and what to do.

    Raises:
        ValueError: a code has no explanation, or the other way round.
    """
    origins = _origins()
    if wrong := origins.keys() ^ TEXTS.keys():
        raise ValueError(f"error_texts.py and the code differ in {sorted(wrong)}; explain each code, and no others")
    calls = {code: origin for code, origin in origins.items() if origin.status is not None}
    parts = ["## Errors of calls\n"]
    for code in sorted(calls, key=lambda code: (calls[code].status, code)):
        parts.append(_describe(code, calls[code]))
    parts.append("## Errors of images\n")
    parts += [_describe(code, origins[code]) for code in sorted(origins.keys() - calls.keys())]
    return "\n".join(parts)


def _describe(code: str, origin: _Origin) -> str:
    status = f"**{origin.status.value} {origin.status.phrase}.** " if origin.status else ""
    text = TEXTS[code]
    retry = "The same request may succeed later." if origin.retryable else ""
    return f"### {code}\n\n{status}{text.when} {retry}\n\n{text.remedy}\n".replace(" \n", "\n")


def _origins() -> dict[str, _Origin]:
    found = {status.name: _Origin(status, False) for status in _FRAMEWORK}
    for folder in ("api", "shared", "worker"):
        for file in sorted((_ROOT / folder).rglob("*.py")):
            text = file.read_text()
            # Few modules write codes, and to parse all of them takes seconds.
            if _WRITERS.search(text):
                found |= _literals(ast.parse(text))
    return found | {kind.code: _origin_of(kind) for kind in _kinds(errors.Flux2Error)}


def _kinds(kind: type[errors.Flux2Error]) -> Iterator[type[errors.Flux2Error]]:
    if "code" in vars(kind) and not issubclass(kind, _OWN):
        yield kind
    for inner in kind.__subclasses__():
        yield from _kinds(inner)


def _origin_of(kind: type[errors.Flux2Error]) -> _Origin:
    status = status_of(kind)
    is_of_image = issubclass(kind, errors.RunError) and status is HTTPStatus.INTERNAL_SERVER_ERROR
    return _Origin(None if is_of_image else status, kind.retryable)


def _literals(tree: ast.Module) -> dict[str, _Origin]:
    """Return the codes that a module writes itself, in errors of images and in answers."""
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    origins = (_origin_of_call(node, constants) for node in calls)
    return {code: origin for code, origin in origins if isinstance(code, str) and origin is not None}


def _origin_of_call(node: ast.Call, constants: Mapping[str, object]) -> tuple[object, _Origin | None]:
    def value(part: ast.expr | None) -> object:
        if isinstance(part, ast.Name):
            return constants.get(part.id)
        return part.value if isinstance(part, ast.Constant) else None

    named = {each.arg: each.value for each in node.keywords}
    match ast.unparse(node.func):
        case "ItemError":
            return value(named.get("code")), _Origin(None, bool(value(named.get("retryable"))))
        case "InvalidRequest":
            return value(named.get("code")), _origin_of(errors.InvalidRequest)
        case "problem_response":
            status, code = node.args[:2]
            # Other statuses are those of classes, or of the framework.
            name = ast.unparse(status).removeprefix("HTTPStatus.")
            return value(code), _Origin(HTTPStatus[name], False) if name in HTTPStatus.__members__ else None
    return None, None
