"""The client's verbs and models agree with the OpenAPI document that the API serves."""

import io
import re
import types
import typing
from pathlib import Path

import httpx2
import pytest
from PIL import Image
from pydantic import BaseModel

from flux2_client import models
from flux2_client.file_body import FileBody
from flux2_client.image_file import check_data
from flux2_client.listing import Listing
from flux2_client.models import ImageInfo, Result
from flux2_client.protocol import Protocol

_file = io.BytesIO()
Image.new("RGB", (64, 64)).save(_file, "PNG")
PNG = _file.getvalue()

USAGE = {"first_day": "2026-01-01", "last_day": "2026-01-31", "group_by": ["day", "key"], "tenant": "a"}

# Verb, its arguments, the path in the document, and the model that reads the answer.
VERBS = [
    ("submit", ({},), {"idempotency_key": None}, "/v1/inference", models.Job),
    ("submit_images", ({},), {"idempotency_key": None}, "/v1/images/generations", models.ImagesJob),
    (
        "submit_replay",
        ("",),
        {"lora": None, "images": {"a": "b"}, "idempotency_key": None},
        "/v1/replays",
        models.Replay,
    ),
    ("status", ("1",), {}, "/v1/requests/{request_id}/status", models.Status),
    ("result", ("1",), {}, "/v1/requests/{request_id}/result", Result[ImageInfo]),
    ("cancel", ("1",), {}, "/v1/requests/{request_id}/cancel", models.Status),
    ("resend_webhook", ("1",), {}, "/v1/requests/{request_id}/webhook/resend", models.Status),
    (
        "requests",
        (),
        {"status": "failed", "model": "flux2", "tenant": "acme", "page_size": 5},
        "/v1/requests",
        models.Page[models.JobLine],
    ),
    ("submit_sweep", ({},), {"idempotency_key": None}, "/v1/sweeps", models.Sweep),
    ("estimate_sweep", ({},), {}, "/v1/sweeps/estimate", models.SweepEstimate),
    ("sweep_status", ("1",), {}, "/v1/sweeps/{sweep_id}/status", models.SweepStatus),
    ("sweep_result", ("1",), {"page_size": 5}, "/v1/sweeps/{sweep_id}/result", models.SweepPage[ImageInfo]),
    ("cancel_sweep", ("1",), {}, "/v1/sweeps/{sweep_id}/cancel", models.SweepStatus),
    ("sweeps", (), {"tenant": "acme", "page_size": 5}, "/v1/sweeps", models.Page[models.SweepLine]),
    ("models", (), {}, "/v1/models", models.ModelList),
    ("usage", (), USAGE, "/v1/usage", models.Usage),
    ("usage_csv", (), USAGE, "/v1/usage", None),
    ("slots", (), {"page_size": 5}, "/v1/slots", models.Page[models.Slot]),
    ("queue", (), {"limit": 5, "tenant": "acme"}, "/v1/queue", models.Queue),
    ("adapter", ("a",), {"model": "flux2"}, "/v1/adapters", models.Adapter),
    ("adapters", (), {"page_size": 5}, "/v1/adapters", models.Page[models.AdapterFile]),
    (
        "upload_adapter",
        (FileBody(Path("a"), 1, "0" * 64),),
        {"name": "a"},
        "/v1/adapters/{name}",
        models.UploadedAdapter,
    ),
    ("upload_image", (check_data(PNG),), {}, "/v1/uploads", models.UploadedImage),
    ("delete_adapter", ("a",), {"sha256": "0" * 64}, "/v1/adapters/{name}", models.DeletedUploads),
    ("wait", ("1",), {"timeout_s": 1, "poll_s": None, "on_status": None}, "/v1/requests/{request_id}/status", None),
    ("wait_sweep", ("1",), {"timeout_s": 1, "poll_s": None, "on_status": None}, "/v1/sweeps/{sweep_id}/status", None),
]


@pytest.fixture
def document(api):
    return api.http.get("/openapi.json").json()


@pytest.fixture
def protocol():
    return Protocol("http://x", ImageInfo, owner=None, retry_s=0, on_failure=None)


def test_every_verb_of_the_protocol_is_checked_here():
    verbs = {name for name in vars(Protocol) if not name.startswith("_")}

    assert verbs - {"download"} == {name for name, *_ in VERBS}


@pytest.mark.parametrize(("name", "arguments", "options", "path", "model"), VERBS)
def test_a_verbs_request_and_the_fields_that_it_reads_are_in_the_document(
    document, protocol, name, arguments, options, path, model
):
    steps = getattr(protocol, name)(*arguments, **options)
    call = next(second_page(steps) if isinstance(steps, Listing) else steps)

    assert re.fullmatch(re.sub(r"\\{.*?\\}", "[^/]+", re.escape(path)), call.path)
    operation = document["paths"][path][call.method.lower()]
    known = {(parameter["in"], parameter["name"].lower()) for parameter in operation.get("parameters", [])}
    assert {("query", key) for key in call.params} <= known
    headers = {key.lower(): value for key, value in call.headers.items()}
    # The document names the type of a body at the body.
    assert headers.pop("content-type", None) in operation.get("requestBody", {}).get("content", {None: {}})
    assert {("header", key) for key in headers} <= known
    if model is not None:
        answer = next(answer for code, answer in operation["responses"].items() if code.startswith("2"))
        schemas = variants(document, answer["content"]["application/json"]["schema"])
        faults = [find_faults(document, schema, model) for schema in schemas]
        assert [] in faults, faults


def test_a_field_that_the_api_does_not_have_is_noticed(document):
    class Newer(ImageInfo):
        quality: float

    class NewerResult(Result[Newer]):
        pass

    [schema] = variants(document, {"$ref": "#/components/schemas/Result"})

    assert find_faults(document, schema, NewerResult) == ["Newer.quality is unknown"]


def second_page(listing):
    """Return the steps of a listing's second page, whose request has a cursor."""
    first = listing.next_page()
    next(first)
    with pytest.raises(StopIteration):
        first.send(httpx2.Response(200, json={"data": [], "has_more": True, "next_cursor": "a"}))
    return listing.next_page()


def variants(document, schema):
    """Yield the object schemas that a schema refers to."""
    for option in schema.get("anyOf", [schema]):
        name = option.get("$ref", "").rpartition("/")[2]
        yield document["components"]["schemas"][name] if name else option


def find_faults(document, schema, model):
    """Return the fields of a model that the schema lacks, or that the model needs and the schema does not promise."""
    faults = []
    for name, field in model.model_fields.items():
        if name not in schema.get("properties", {}):
            faults.append(f"{model.__name__}.{name} is unknown")
            continue
        if field.is_required() and name not in schema["required"] and "const" not in schema["properties"][name]:
            faults.append(f"{model.__name__}.{name} may be missing")
        for nested in nested_models(field.annotation):
            part = schema["properties"][name]
            part = next((option for option in part.get("anyOf", []) if option.get("type") != "null"), part)
            for inner in variants(document, part.get("items") or part.get("additionalProperties", part)):
                faults += find_faults(document, inner, nested)
    return faults


def nested_models(annotation):
    """Yield the models inside an annotation."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in typing.get_args(annotation):
        yield from nested_models(part)
