"""State in a model's JSON schema what a validator checks, so that the schema refuses what the API refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


# Compared by identity: Python hashes the parts of an annotation, and no dictionary can be hashed.
@dataclass(frozen=True, eq=False)
class SchemaKeywords:
    """Adds keywords to the schema of an annotated type; unlike a field's own extras, also inside unions and lists."""

    keywords: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(core), **self.keywords}


#: For texts whose validator refuses NUL characters with a message of its own.
WITHOUT_NUL = SchemaKeywords({"pattern": r"^[^\u0000]*$"})
