"""The HTTP answers to errors of the files that a request names."""

import json

import pytest
from fastapi import FastAPI

from api.errors import install_error_handlers
from shared.errors import (
    AdapterNotFound,
    AdapterRefused,
    Flux2Error,
    ReferenceRefused,
    SourceChanged,
    SourceUnavailable,
)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (SourceChanged("another file", field="loras[0].path"), 422, "source_changed", None),
        (ReferenceRefused("too narrow", field="prompts[0].ctrl_img_2"), 422, "invalid_reference", None),
        (SourceUnavailable("try again later"), 503, "source_unavailable", "2"),
        (AdapterRefused("a web page", field="loras[0].path"), 422, "INVALID_LORA", None),
        (AdapterNotFound("answered 404", field="loras[0].path"), 400, "LORA_NOT_FOUND", None),
    ],
)
def test_an_error_of_a_source_has_its_status_its_code_and_its_field(error, status, code, retry_after):
    app = FastAPI()
    install_error_handlers(app)

    answer = app.exception_handlers[Flux2Error](None, error)

    problem = json.loads(answer.body)
    assert (answer.status_code, problem["code"], problem["detail"]) == (status, code, str(error))
    assert answer.headers.get("Retry-After") == retry_after
    assert [field["path"] for field in problem["errors"]] == ([error.field] if error.field else [])
