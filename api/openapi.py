"""Complete `/openapi.json` where FastAPI says less, or something else, than what the API does.

* Errors are problem details, for every operation; on OpenAI's paths they have its form.
* Bounds of integers are integers: FastAPI writes 2**63 as 9.223372036854776e+18.
* Parameters are never null: a URL or a header has no way to say so.
* `links` state which call takes what an answer holds.
* `x-rules` states what the schema cannot: the rules that a sound request may still break, by the code of the answer.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI

from api.errors import MEDIA_TYPE
from api.openai.error_shape import PATHS as OPENAI_PATHS
from api.schemas.openai_images import OpenAIError
from api.schemas.problems import Problem

#: Every operation can answer so: 405, 500, 503 while Redis is away, and other statuses without an entry.
ANY_PROBLEM: dict[int | str, dict[str, Any]] = {"default": {"model": Problem, "description": "Any other error."}}

#: Rules of every endpoint with a JSON body.
BODY_RULES: Final = {"BODY_TOO_LARGE": "A body has at most `limits.max_body_bytes` of `GET /v1/models`."}

_BOUNDS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})

_PROBLEM_SCHEMA = {"$ref": f"#/components/schemas/{Problem.__name__}"}
_OPENAI_SCHEMA = {"$ref": f"#/components/schemas/{OpenAIError.__name__}"}


class Application(FastAPI):
    """An application whose document gives problems their own media type."""

    def openapi(self) -> dict[str, Any]:
        """Return the document. It is made once."""
        if self.openapi_schema is None:
            for path, operations in super().openapi()["paths"].items():
                for operation in operations.values():
                    if path in OPENAI_PATHS:
                        _give_openai_form(operation["responses"])
                    _name_media_type(operation["responses"])
                    _require_values(operation.get("parameters", []))
            _round_bounds(self.openapi_schema)
        assert self.openapi_schema is not None
        return self.openapi_schema


def link(method: str, path: str, description: str, /, **parameters: str) -> dict[str, Any]:
    """Describe that a call takes what an answer holds.

    Args:
        parameters: runtime expressions of OpenAPI by the parameter's name, such as `$response.body#/request_id`.
    """
    place = quote(path.replace("~", "~0").replace("/", "~1"), safe="~")
    return {
        "operationRef": f"#/paths/{place}/{method.lower()}",
        "description": description,
        "parameters": parameters,
    }


def with_rules(*rules: dict[str, str]) -> dict[str, Any]:
    """Return the part of an operation's document that states its rules, a sentence for each code of a problem."""
    return {"x-rules": {code: text for each in rules for code, text in each.items()}}


def _require_values(parameters: list[dict[str, Any]]) -> None:
    # FastAPI takes `str | None` for a parameter that may be null, and a caller would send the text "null".
    for parameter in parameters:
        schema = parameter["schema"]
        options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
        if len(options) == 1:
            del schema["anyOf"]
            parameter["schema"] = options[0] | schema


def _round_bounds(part: Any) -> None:
    if isinstance(part, list):
        for value in part:
            _round_bounds(value)
    elif isinstance(part, dict):
        if part.get("type") == "integer":
            part.update({name: int(part[name]) for name in _BOUNDS & part.keys()})
        for value in part.values():
            _round_bounds(value)


def _give_openai_form(responses: dict[str, Any]) -> None:
    for response in responses.values():
        for body in response.get("content", {}).values():
            if body.get("schema") == _PROBLEM_SCHEMA:
                body["schema"] = _OPENAI_SCHEMA


def _name_media_type(responses: dict[str, Any]) -> None:
    # FastAPI documents all answers of an operation under the media type of its success.
    for response in responses.values():
        content = response.get("content", {})
        for media_type, body in list(content.items()):
            if body.get("schema") == _PROBLEM_SCHEMA:
                content[MEDIA_TYPE] = content.pop(media_type)
