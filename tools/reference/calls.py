"""The page of the HTTP calls, from the API's own document."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from fastapi import FastAPI

from api.app import create_app
from api.doors.roles import ROLE_OF
from shared.settings import Settings
from tools.reference.markdown import code, paragraphs, plain, table

_HEAD: Final = """# HTTP calls and fields

Each call with its parameters, answers and rules, and each object with its fields. The [overview](http.md) explains
what belongs together, and [error codes](errors.md) have remedies. Every call can also answer 405, 500, and 503 while
Redis is away. `python -m tools.reference` writes this page from `/openapi.json`.
"""
_REF: Final = "#/components/schemas/"
_JSON: Final = ("application/json", "application/problem+json")
# What the framework writes where the code says nothing.
_NO_DESCRIPTION: Final = "Successful Response"
_Schema = Mapping[str, Any]


def write_page() -> str:
    """Return the page."""
    app = create_app(Settings(_env_file=None, storage={"backend": "directory"}))
    document = app.openapi()
    roles = dict(_roles(app))
    parts = [_HEAD]
    for tag in document["tags"]:
        parts.append(f"## {_title(tag['name'])}\n\n{plain(tag['description'])}\n")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    parts += _describe_call(method.upper(), path, operation, roles[method.upper(), path])
    parts.append("## Objects\n")
    sent = _sent_objects(document)
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += _describe_object(name, schema, is_sent=name in sent)
    return "\n".join(parts)


def _roles(app: FastAPI) -> Iterator[tuple[tuple[str, str], str | None]]:
    """Yield the role that each route declares by its method and path."""
    for route in _walk(app.routes):
        if dependant := getattr(route, "dependant", None):
            for role in (ROLE_OF[call] for call in _calls(dependant) if call in ROLE_OF):
                yield from (((method, route.path), role) for method in route.methods)


def _walk(routes: Any) -> Iterator[Any]:
    # FastAPI does not copy the routes of an included router.
    for route in routes:
        router = getattr(route, "original_router", None)
        yield from _walk(router.routes) if router else [route]


def _calls(dependant: Any) -> Iterator[Any]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)


def _title(tag: str) -> str:
    return {"openai": "OpenAI's interface"}.get(tag, tag.capitalize())


def _describe_call(method: str, path: str, operation: _Schema, role: str | None) -> Iterator[str]:
    needs = f"Needs the role `{role}`." if role else "Needs no key."
    yield f"### {method} {plain(path)}\n"
    yield f"**{plain(operation['summary'])}.** {plain(paragraphs(operation.get('description', '')))}\n\n{needs}\n"
    if parameters := operation.get("parameters"):
        yield table(["parameter", "in", "type", "meaning"], map(_describe_parameter, parameters))
    if body := operation.get("requestBody"):
        kinds = (f"`{media}` {_type(content.get('schema', {}))}" for media, content in body["content"].items())
        yield f"Body: {', '.join(kinds)}\n"
        for content in body["content"].values():
            # A form, which is no object of its own.
            if "properties" in (schema := content.get("schema", {})):
                yield _describe_fields(schema, required=schema.get("required", ()))
    answers = {status: answer for status, answer in operation["responses"].items() if status != "default"}
    rows = ((status, _body(answers[status]), _when(answers[status])) for status in sorted(answers))
    yield table(["status", "body", "when"], rows)
    if rules := operation.get("x-rules"):
        lines = ((f"[`{name}`](errors.md#{name.lower()})", plain(text)) for name, text in rules.items())
        yield table(["code", "rule"], lines)


def _describe_parameter(parameter: _Schema) -> tuple[str, str, str, str]:
    meaning = _meaning(parameter, is_required=parameter["required"])
    return code(parameter["name"]), parameter["in"], _type(parameter["schema"]), meaning


def _when(answer: _Schema) -> str:
    text = answer["description"]
    return "The call succeeded." if text == _NO_DESCRIPTION else plain(text)


def _body(answer: _Schema) -> str:
    kinds = []
    for media, content in answer.get("content", {}).items():
        kind = _type(content["schema"]) if "$ref" in content.get("schema", {}) else ""
        kinds.append(kind if kind and media in _JSON else f"`{media}` {kind}".strip())
    return ", ".join(kinds)


def _sent_objects(document: _Schema) -> set[str]:
    """Return the names of the objects that callers send."""
    schemas = document["components"]["schemas"]
    bodies = [each.get("requestBody") for operations in document["paths"].values() for each in operations.values()]
    found, waiting = set[str](), set(_references(bodies))
    while waiting:
        found |= waiting
        waiting = {name for each in waiting for name in _references(schemas[each])} - found
    return found


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(name := part.get("$ref"), str):
            yield name.removeprefix(_REF)
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from _references(each)


def _describe_object(name: str, schema: _Schema, *, is_sent: bool) -> Iterator[str]:
    yield f"### {name}\n\n{plain(paragraphs(schema.get('description', '')))}\n"
    # Answers have all their fields.
    yield _describe_fields(schema, required=schema.get("required", ()) if is_sent else ())


def _describe_fields(schema: _Schema, *, required: Collection[str]) -> str:
    rows = (
        (code(field), _type(each), _meaning(each, is_required=field in required))
        for field, each in schema.get("properties", {}).items()
    )
    return table(["field", "type", "meaning"], rows)


def _meaning(described: _Schema, *, is_required: bool) -> str:
    schema = described.get("schema", described)
    text = plain(paragraphs(described.get("description") or schema.get("description", "")))
    if is_required:
        return f"Required. {text}"
    default = schema.get("default")
    # Most descriptions say what a value of null, or none, means.
    return text if default in (None, [], {}, "") else f"{text} Default: `{default}`."


def _type(schema: _Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(option) for option in options)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value != "")
    if "prefixItems" in schema:
        return code(f"[{', '.join(_type(item) for item in schema['prefixItems'])}]")
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}{_bounds(schema, 'Items')}"
    return f"{schema.get('format') or schema.get('type') or 'any'}{_bounds(schema, 'Length')}"


def _bounds(schema: _Schema, unit: str) -> str:
    """Return the bounds of a number, a text's length or a list's size, such as ` (at least 64, at most 4,096)`."""
    found = {
        "at least": schema.get("minimum", schema.get(f"min{unit}")),
        "above": schema.get("exclusiveMinimum"),
        "at most": schema.get("maximum", schema.get(f"max{unit}")),
        "below": schema.get("exclusiveMaximum"),
    }
    parts = [f"{word} {value:,}" for word, value in found.items() if value is not None]
    return f" ({', '.join(parts)})" if parts else ""
