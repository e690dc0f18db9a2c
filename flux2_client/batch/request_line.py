"""One line of a batch file: a request with an id of the caller's, in the shape of OpenAI's batch API.

Source:
    https://platform.openai.com/docs/api-reference/batch/request-input
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flux2_client.batch.endpoints import ENDPOINTS, IMAGES, INFERENCE, Endpoint
from flux2_client.batch.line_reader import MAX_LINE_BYTES, RawLine

#: How the ids of answers begin to lines that cannot be sent.
FAULT_PREFIX: Final = "batch_line_"
_FIELDS: Final = frozenset({"custom_id", "method", "url", "body"})
_LONGEST_ID: Final = 512
_EXAMPLE: Final = '{"custom_id": "a", "method": "POST", "url": "/v1/inference", "body": {...}}'
_URLS: Final = " or ".join(ENDPOINTS)


@dataclass(frozen=True)
class RequestLine:
    """A line that can be sent.

    Attributes:
        number: of the line in its file, from 1.
        answer_id: the `id` of the answer: the same for the same content, wherever the line is.
    """

    number: int
    custom_id: str
    endpoint: Endpoint
    body: Mapping[str, Any]
    answer_id: str


@dataclass(frozen=True)
class LineFault:
    """A line that cannot be sent.

    Attributes:
        custom_id: None if the line has none.
        answer_id: the same for the same content at the same place.
    """

    number: int
    custom_id: str | None
    code: str
    message: str
    answer_id: str


class _Unusable(ValueError):
    """A line is no request."""


def parse_line(raw: RawLine) -> RequestLine | LineFault:
    """Read a line of a batch file.

    A line may also be the body itself with its `custom_id`, if its fields belong to one endpoint alone.
    """
    custom_id = None
    try:
        fields = _read_object(raw)
        custom_id = _read_id(fields)
        endpoint, body = _read_request(fields)
        digest = _digest(custom_id, endpoint.url, body)
    except _Unusable as error:
        return fault(raw, custom_id, "invalid_line", str(error))
    return RequestLine(raw.number, custom_id, endpoint, body, f"batch_req_{digest}")


def fault(raw: RawLine, custom_id: str | None, code: str, message: str) -> LineFault:
    """Describe a line that is not sent; `message` goes on after the line's number."""
    answer_id = f"{FAULT_PREFIX}{raw.number}_{hashlib.sha256(raw.data).hexdigest()[:16]}"
    return LineFault(raw.number, custom_id, code, f"line {raw.number} {message}", answer_id)


def _read_object(raw: RawLine) -> dict[str, Any]:
    if not raw.is_whole:
        raise _Unusable(f"is longer than {MAX_LINE_BYTES // 2**20} MiB; upload its images, and name the uploads")
    try:
        fields = json.loads(raw.data.decode())
    except UnicodeDecodeError as error:
        raise _Unusable(f"is not text in UTF-8: {error.reason} at byte {error.start}") from error
    # Nested thousands deep.
    except RecursionError as error:
        raise _Unusable("is nested too deeply") from error
    except ValueError as error:
        raise _Unusable(f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _Unusable(f"is no JSON object; write {_EXAMPLE}")
    return fields


def _read_id(fields: Mapping[str, Any]) -> str:
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID:
        raise _Unusable(f"has no custom_id; give it a text of 1 to {_LONGEST_ID} characters that no other line has")
    return custom_id


def _read_request(fields: Mapping[str, Any]) -> tuple[Endpoint, Mapping[str, Any]]:
    if "body" not in fields:
        return _read_bare_body(fields)
    if unknown := sorted(fields.keys() - _FIELDS):
        raise _Unusable(f"has the unknown field {unknown[0]!r}; fields of the request belong into its body")
    if fields.get("method", "POST") != "POST":
        raise _Unusable(f"has the method {fields['method']!r}; only POST is possible")
    endpoint = ENDPOINTS.get(str(fields.get("url")))
    if endpoint is None:
        raise _Unusable(f"has the url {fields.get('url')!r}; use {_URLS}")
    if not isinstance(fields["body"], dict):
        raise _Unusable("has a body that is no JSON object")
    return endpoint, fields["body"]


def _read_bare_body(fields: Mapping[str, Any]) -> tuple[Endpoint, Mapping[str, Any]]:
    body = {name: value for name, value in fields.items() if name != "custom_id"}
    is_job, is_images = "prompts" in body, "prompt" in body
    if is_job == is_images or body.keys() & _FIELDS:
        raise _Unusable(f"has no body; write {_EXAMPLE}")
    return ENDPOINTS[INFERENCE if is_job else IMAGES], body


def _digest(custom_id: str, url: str, body: Mapping[str, Any]) -> str:
    try:
        text = json.dumps([custom_id, url, body], sort_keys=True, ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]
    except RecursionError as error:
        raise _Unusable("is nested too deeply") from error
    # NaN or an infinite number, or half of a surrogate pair.
    except ValueError as error:
        raise _Unusable(f"cannot be sent as JSON: {error}") from error
