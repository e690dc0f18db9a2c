"""Document errors in `/openapi.json` as they are sent: problem details, for every operation."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from api.errors import MEDIA_TYPE
from api.schemas.problems import Problem

#: Every operation can answer so: 405, 500, 503 while Redis is away, and other statuses without an entry.
ANY_PROBLEM: dict[int | str, dict[str, Any]] = {"default": {"model": Problem, "description": "Any other error."}}

_PROBLEM_SCHEMA = {"$ref": f"#/components/schemas/{Problem.__name__}"}


class Application(FastAPI):
    """An application whose document gives problems their own media type."""

    def openapi(self) -> dict[str, Any]:
        """Return the document. It is made once."""
        if self.openapi_schema is None:
            for path in super().openapi()["paths"].values():
                for operation in path.values():
                    _name_media_type(operation["responses"])
        assert self.openapi_schema is not None
        return self.openapi_schema


def _name_media_type(responses: dict[str, Any]) -> None:
    # FastAPI documents all answers of an operation under the media type of its success.
    for response in responses.values():
        content = response.get("content", {})
        for media_type, body in list(content.items()):
            if body.get("schema") == _PROBLEM_SCHEMA:
                content[MEDIA_TYPE] = content.pop(media_type)
