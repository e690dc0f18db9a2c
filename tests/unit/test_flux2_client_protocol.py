"""The protocol decides without a connection: its steps are performed here by hand."""

import json
import math

import httpx2
import pytest

from flux2_client.models import ImageInfo
from flux2_client.protocol import Protocol
from flux2_client.steps import Call, Pause
from shared.errors import ApiError, ApiUnreachable

STATUS = {"request_id": "1", "status": "in_progress", "model": "flux2", "progress": 0, "items": [], "created_at": ""}


@pytest.fixture
def protocol():
    return Protocol("http://api", ImageInfo, owner=None, retry_s=60, on_failure=None)


def answer(body, status=200, **headers):
    request = httpx2.Request("GET", "http://api/path")
    return httpx2.Response(status, content=json.dumps(body).encode(), headers=headers, request=request)


def test_polls_become_as_rare_as_the_api_asks(protocol):
    steps = protocol.wait("1", timeout_s=60, poll_s=None, on_status=None)
    pauses = []
    for _ in range(5):
        assert next(steps) == Call("GET", "/v1/requests/1/status")
        pauses.append(steps.send(answer(STATUS, **{"Retry-After": "1"})))

    assert pauses == [Pause(seconds) for seconds in (0.25, 0.5, 1, 1, 1)]


def test_a_wait_ends_with_the_first_final_status(protocol):
    seen = []
    steps = protocol.wait("1", timeout_s=60, poll_s=0.1, on_status=seen.append)

    next(steps)
    steps.send(answer(STATUS))
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send(answer({**STATUS, "status": "failed", "error": "it broke"}))

    assert stop.value.value.error == "it broke"
    assert [status.status for status in seen] == ["in_progress", "failed"]


def test_an_id_cannot_name_another_path(protocol):
    assert next(protocol.status("../../models?x")).path == "/v1/requests/..%2F..%2Fmodels%3Fx/status"


@pytest.mark.parametrize("request_id", ["", ".", ".."])
def test_an_id_that_would_vanish_from_the_path_is_refused(protocol, request_id):
    with pytest.raises(ApiError, match=r"is no id of a job; `flux2 list` shows the ids"):
        protocol.status(request_id)


def test_a_request_that_cannot_be_sent_is_refused_without_a_traceback(protocol):
    for body, key, message in (
        ({"loras": [{"network_multiplier": math.nan}]}, None, "cannot be sent as JSON: Out of range float"),
        ({"prompts": [{"prompt": "\udcff"}]}, None, "cannot be sent as JSON: .*surrogates not allowed"),
        ({}, "ключ", "the idempotency key 'ключ' cannot be sent"),
        ({}, "a\nb", "the idempotency key .* cannot be sent"),
    ):
        with pytest.raises(ApiError, match=message):
            protocol.submit(body, idempotency_key=key)
    # Bytes of a command line that are not text.
    assert next(protocol.status("\udcff")).path == "/v1/requests/%3F/status"


def test_a_path_that_the_api_lacks_says_how_its_address_is_written(protocol):
    steps = protocol.status("1")
    next(steps)
    request = httpx2.Request("GET", "http://api:8000/v1/v1/requests/1/status?a=b")
    problem = {"code": "NOT_FOUND", "detail": "Not Found"}

    with pytest.raises(ApiError, match=r"which is written like http://api:8000, without /v1$") as raised:
        steps.send(httpx2.Response(404, json=problem, request=request))

    assert "http://api:8000/v1/v1/requests/1/status is no path of the API" in str(raised.value)
    assert raised.value.status == 404


def test_a_job_that_does_not_exist_says_nothing_of_the_address(protocol):
    steps = protocol.status("1")
    next(steps)

    with pytest.raises(ApiError, match=r"^REQUEST_NOT_FOUND: no such job$"):
        steps.send(answer({"code": "REQUEST_NOT_FOUND", "detail": "no such job"}, status=404))


def test_an_address_that_redirects_is_named_with_its_target(protocol):
    steps = protocol.status("1")
    next(steps)

    with pytest.raises(ApiError, match=r"http://api/path redirects to https://api/path; use the address"):
        steps.send(answer({}, status=308, Location="https://api/path"))


def test_an_address_counts_as_mistyped_until_it_has_answered(protocol):
    steps = protocol.status("1")
    next(steps)
    with pytest.raises(ApiUnreachable, match="http://api cannot be reached"):
        steps.throw(httpx2.ConnectError("refused"))

    steps = protocol.status("1")
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(answer(STATUS))
    steps = protocol.status("1")
    next(steps)
    assert isinstance(steps.throw(httpx2.ConnectError("refused")), Pause)


def test_an_answer_without_a_needed_field_names_the_field(protocol):
    steps = protocol.status("1")
    next(steps)

    with pytest.raises(ApiError, match="without a usable 'model'"):
        steps.send(answer({name: value for name, value in STATUS.items() if name != "model"}))


def test_errors_in_openais_form_are_read(protocol):
    steps = protocol.submit_images({"prompt": "a"}, idempotency_key="one")
    call = next(steps)
    error = {"message": "size 10x10 is too small", "type": "invalid_request_error", "param": "size", "code": "SIZE"}

    with pytest.raises(ApiError, match=r"^SIZE: size 10x10 is too small$") as raised:
        steps.send(answer({"error": error}, 400))

    assert (call.path, call.headers["Prefer"]) == ("/v1/images/generations", "respond-async")
    assert (raised.value.status, raised.value.problem["error"]) == (400, error)
    assert (raised.value.problem["code"], raised.value.problem["detail"]) == ("SIZE", "size 10x10 is too small")
