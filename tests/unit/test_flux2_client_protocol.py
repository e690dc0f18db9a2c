"""The protocol decides without a connection: its steps are performed here by hand."""

import json

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
