"""OpenAI's official client works against this API; the tests act as the worker."""

import asyncio
import base64
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from PIL import Image

from api import job_waits, upload_body
from api.openai import base64_answer, edit_form
from shared.catalog import TURBO
from shared.job import ItemError


@pytest.fixture
def client(api):
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def claim(api, wait_until):
    def take():
        pools = ("flux2", "flux2+references", "flux2+sigmas")
        return wait_until(lambda: api.ledger.claim_next(pools, slot="gpu-0", boot="boot", warm="base"), what="an item")

    return take


@pytest.fixture
def background():
    with ThreadPoolExecutor() as pool:
        yield pool.submit


@pytest.fixture
def slot_with_references(api, slot_report):
    api.ledger.workers.beat("gpu-0", slot_report(features="merged,references"))


def encoded(color="red", size=(96, 80)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def test_images_come_with_urls(api, client, background, claim, finish):
    call = background(
        client.images.generate,
        model="flux2",
        prompt="a [trigger] cat",
        n=2,
        size="128x64",
        extra_body={"seed": 7, "trigger_word": "sks", "sample_steps": 4, "neg": "blur"},
    )
    items = [claim(), claim()]
    for item in items:
        finish(api, item, data=f"picture {item.spec.seed}".encode())

    answer = call.result()

    assert [(item.spec.seed, item.spec.width, item.spec.height) for item in items] == [(7, 128, 64), (8, 128, 64)]
    assert [item.spec.num_inference_steps for item in items] == [4, 4]
    assert [httpx2.get(image.url).content for image in answer.data] == [b"picture 7", b"picture 8"]
    assert [(image.revised_prompt, image.seed, image.b64_json) for image in answer.data] == [
        ("a sks cat", 7, None),
        ("a sks cat", 8, None),
    ]
    assert answer.request_id == items[0].job_id
    assert abs(answer.created - api.ledger.job(items[0].job_id).accepted_ms / 1000) < 1


@pytest.mark.parametrize(
    ("fields", "steps", "levels", "guidance"),
    [
        ({"sigmas": [1, 0.5, 0.25]}, 3, (1.0, 0.5, 0.25), 4.0),
        ({"preset": "turbo"}, 8, TURBO.sigmas, 2.5),
        ({"preset": "turbo", "sigmas": [1, 0.5]}, 2, (1.0, 0.5), 2.5),
    ],
)
def test_noise_levels_and_presets_are_those_of_a_job(api, claim, finish, fields, steps, levels, guidance):
    body = {"prompt": "a cat", "n": 2, "size": "64x64", **fields}

    job = api.http.post("/v1/images/generations", json=body, headers={"Prefer": "respond-async"}).json()
    items = [claim(), claim()]
    for item in items:
        finish(api, item)

    rendered = [(item.spec.num_inference_steps, item.spec.sigmas, item.spec.guidance_scale) for item in items]
    assert rendered == [(steps, levels, guidance)] * 2
    images = api.http.get(job["result_url"]).json()["outputs"]["images"]
    assert [image["preset"] for image in images] == [fields.get("preset")] * 2


@pytest.mark.parametrize(
    "fields",
    [
        {"sigmas": [1, 0.5], "sample_steps": 2},
        {"sigmas": [0.5, 1]},
        {"sigmas": [1.1]},
        {"sigmas": []},
        {"preset": "warp"},
        {"sigmas": [1, 0.5], "engine": "ai-toolkit"},
        {"preset": "turbo", "engine": "ai-toolkit"},
    ],
)
def test_noise_levels_and_presets_are_refused_as_those_of_a_job_are(api, fields):
    of_prompt = {name: value for name, value in fields.items() if name in ("sigmas", "sample_steps")}
    of_job = {name: value for name, value in fields.items() if name not in of_prompt}
    job = {"model": "flux2", "prompts": [{"prompt": "a", **of_prompt}], "loras": [], **of_job}

    refused = api.http.post("/v1/images/generations", json={"prompt": "a", **fields})
    native = api.http.post("/v1/inference", json=job)

    assert native.status_code in (400, 422)
    error, problem = refused.json()["error"], native.json()
    assert (refused.status_code, error["code"]) == (native.status_code, problem["code"])
    assert error["message"].replace("prompts[0].", "") == problem["detail"].replace("prompts[0].", "")


def test_images_come_as_base64(api, client, background, claim, finish):
    call = background(client.images.generate, model="flux2", prompt="a cat", response_format="b64_json")
    finish(api, claim(), data=b"picture")

    [image] = call.result().data

    assert (image.url, base64.b64decode(image.b64_json)) == (None, b"picture")


def test_large_images_in_base64_are_read_in_pieces(api, client, background, claim, finish, monkeypatch):
    monkeypatch.setattr(base64_answer, "_PIECE_BYTES", 30)
    sizes, read = [], api.store.read
    monkeypatch.setattr(api.store, "read", lambda key, start, end: sizes.append(end - start) or read(key, start, end))
    call = background(client.images.generate, model="flux2", prompt="a cat", n=2, response_format="b64_json")
    files = [bytes(range(100)), bytes(range(100, 131))]
    for data in files:
        finish(api, claim(), data=data)

    answer = call.result()

    assert [base64.b64decode(image.b64_json) for image in answer.data] == files
    assert sizes == [30, 30, 30, 10, 30, 1]
    assert answer.request_id


def test_an_edit_takes_its_images_as_references(api, client, background, claim, finish, slot_with_references):
    files = [("one.png", encoded("red"), "image/png"), ("two.png", encoded("blue"), "image/png")]
    call = background(
        client.images.edit,
        model="flux2",
        image=files,
        prompt="make it night",
        size="64x64",
        extra_body={"seed": 3, "loras": json.dumps([]), "sigmas": json.dumps([1, 0.5]), "preset": "turbo"},
    )
    item = claim()
    stored = [api.services.references.get(reference.sha256) for reference in item.spec.references]
    finish(api, item)

    assert stored == [files[0][1], files[1][1]]
    assert (item.spec.prompt, item.spec.seed, item.spec.width) == ("make it night", 3, 64)
    assert (item.spec.sigmas, item.spec.guidance_scale) == ((1.0, 0.5), 2.5)
    assert len(call.result().data) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "code", "param"),
    [
        ({"model": "sd15"}, 400, "MODEL_NOT_FOUND", None),
        ({"size": "10x10"}, 400, "INVALID_REQUEST", "size"),
        ({"size": "large"}, 422, "VALIDATION_ERROR", "size"),
        ({"n": 11}, 422, "VALIDATION_ERROR", "n"),
        ({"extra_body": {"loras": [{"path": "none.safetensors"}]}}, 400, "LORA_NOT_FOUND", None),
        ({"extra_body": {"sample_step": 4}}, 422, "VALIDATION_ERROR", "sample_step"),
    ],
)
def test_errors_have_openais_form(arguments, status, code, param, client):
    with pytest.raises(openai.APIStatusError) as raised:
        client.images.generate(**{"model": "flux2", "prompt": "a cat"} | arguments)

    error = raised.value
    assert (error.status_code, error.code, error.type) == (status, code, "invalid_request_error")
    if param is not None:
        assert error.param == param
    assert error.body["message"] in str(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": ("a.png", b"no image", "image/png")}, "is no image"),
        ({"image": [("a.png", encoded(), "image/png")] * 4}, "send 1 to 3"),
        ({"image": ("a.png", encoded(), "image/png"), "mask": ("m.png", encoded(), "image/png")}, "masks are not"),
        ({"image": ("a.png", encoded(), "image/png"), "extra_body": {"loras": "["}}, "loras is no JSON"),
        ({"image": ("a.png", encoded(), "image/png"), "extra_body": {"sigmas": "1,"}}, "sigmas is no JSON"),
    ],
)
def test_an_edit_that_cannot_be_rendered_says_why(arguments, message, client):
    with pytest.raises(openai.APIStatusError, match=message) as raised:
        client.images.edit(model="flux2", prompt="make it night", **arguments)

    assert raised.value.status_code in (400, 422)


def test_what_is_no_form_or_larger_than_its_images_may_be_is_refused_before_it_is_read(api, monkeypatch):
    no_form = api.http.post("/v1/images/edits", json={"prompt": "a"})
    monkeypatch.setattr(
        edit_form, "_FIELDS_BYTES", -edit_form.MAX_REFERENCES * api.services.settings.references.max_bytes
    )
    too_large = api.http.post("/v1/images/edits", data={"prompt": "a"}, files={"image": encoded()})

    assert (no_form.status_code, no_form.json()["error"]["type"]) == (415, "invalid_request_error")
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "BODY_TOO_LARGE")


def test_forms_take_places_of_uploads_from_their_first_byte_and_come_at_their_pace(
    api, client, wait_until, monkeypatch
):
    slots = api.services.image_slots
    monkeypatch.setattr(upload_body, "_PATIENCE_S", 2.0)
    size_bytes = slots._count - 1000
    monkeypatch.setattr(edit_form, "_FIELDS_BYTES", size_bytes)
    head = {"content-type": "multipart/form-data; boundary=b", "content-length": str(size_bytes)}

    with socket.create_connection(("127.0.0.1", httpx2.URL(api.url).port)) as slow:
        lines = [
            "POST /v1/images/edits HTTP/1.1",
            "host: localhost",
            *(f"{name}: {text}" for name, text in head.items()),
        ]
        slow.sendall("\r\n".join([*lines, "", "--b\r\n"]).encode())
        wait_until(lambda: slots._free == 1000, what="the places")
        with pytest.raises(openai.InternalServerError) as refused:
            client.images.edit(model="flux2", image=("a.png", bytes(1000), "image/png"), prompt="a")
        answer = b"".join(iter(lambda: slow.recv(65536), b"")).decode()

    assert (refused.value.status_code, refused.value.code) == (503, "uploads_busy")
    assert answer.startswith("HTTP/1.1 408")
    assert "send the file again over a faster connection" in answer
    wait_until(lambda: slots._free == slots._count, what="the end of the form")


def test_a_form_that_cannot_be_read_is_said_to_be_one(api):
    answer = api.http.post("/v1/images/edits", content=b"no form", headers={"content-type": "multipart/form-data"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert "Missing boundary" in answer.json()["error"]["message"]


def test_a_wrong_key_is_an_authentication_error(client, make_key):
    make_key()

    with pytest.raises(openai.AuthenticationError) as raised:
        client.images.generate(model="flux2", prompt="a cat")

    assert raised.value.code == "UNAUTHORIZED"


def test_a_key_that_may_not_read_gets_no_images(api, make_key):
    key = make_key(roles=("submit",))["Authorization"].removeprefix("Bearer ")

    with (
        openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0) as client,
        pytest.raises(openai.PermissionDeniedError, match="'read'"),
    ):
        client.images.generate(model="flux2", prompt="a cat")

    assert not api.ledger.queue_length("flux2")


def test_a_failed_image_is_an_error_that_clients_do_not_repeat(api, client, background, claim):
    call = background(client.images.generate, model="flux2", prompt="a cat")
    error = ItemError(code="not_finite", message="the latents of seed 42 are not finite", retryable=False)
    api.ledger.commit(claim(), error)

    with pytest.raises(openai.InternalServerError, match="are not finite") as raised:
        call.result()

    assert (raised.value.code, raised.value.response.headers["x-should-retry"]) == ("not_finite", "false")


def test_images_that_take_too_long_are_rendered_nevertheless(api, client, monkeypatch):
    settings = api.services.settings
    short = settings.model_copy(update={"api": settings.api.model_copy(update={"openai_wait_s": 0.2})})
    monkeypatch.setitem(vars(api.services), "settings", short)

    with pytest.raises(openai.APIStatusError, match=r"not finished after 0\.2 s") as raised:
        client.images.generate(model="flux2", prompt="a cat")

    assert (raised.value.status_code, raised.value.code) == (504, "images_unfinished")
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert api.ledger.queue_length("flux2") == 1


async def leave_waiting(api, wait_until, **options):
    """Send a call, and close its connection as soon as the call waits for its images."""
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="unused", max_retries=0) as client:
        call = asyncio.create_task(client.images.generate(model="flux2", prompt="a cat", **options))
        await asyncio.to_thread(wait_until, lambda: api.services.job_waits._taken, what="the wait")
        call.cancel()


def test_the_job_of_a_caller_that_leaves_is_canceled_unless_a_repeat_can_find_it(api, wait_until):
    asyncio.run(leave_waiting(api, wait_until))
    wait_until(lambda: not api.ledger.queue_length("flux2"), what="the cancel")
    wait_until(lambda: not api.services.job_waits._taken, what="the end of the wait")

    asyncio.run(leave_waiting(api, wait_until, extra_headers={"Idempotency-Key": "the same"}))
    wait_until(lambda: not api.services.job_waits._taken, what="the end of the wait")
    assert api.ledger.queue_length("flux2") == 1


def test_a_call_without_a_place_to_wait_is_refused_and_accepted_later(api, client, monkeypatch):
    monkeypatch.setattr(job_waits, "PLACES", 0)

    with pytest.raises(openai.InternalServerError, match="too many calls wait") as raised:
        client.images.generate(model="flux2", prompt="a cat")

    assert (raised.value.status_code, raised.value.code) == (503, "waits_busy")
    assert "Retry-After" in raised.value.response.headers
    assert not api.ledger.queue_length("flux2")


def test_the_models_are_listed(client):
    assert {(model.id, model.object) for model in client.models.list()} >= {
        ("flux2", "model"),
        ("flux2_klein_4b", "model"),
    }


def test_a_call_that_does_not_wait_is_answered_with_its_job(api, claim, finish):
    headers = {"Prefer": "respond-async", "Idempotency-Key": "one"}
    body = {"prompt": "a cat", "n": 2, "size": "64x64"}

    first = api.http.post("/v1/images/generations", json=body, headers=headers)
    again = api.http.post("/v1/images/generations", json=body, headers=headers)
    for _ in range(2):
        finish(api, claim())
    images = api.http.post("/v1/images/generations", json=body, headers={"Idempotency-Key": "one"}).json()

    assert (first.status_code, first.headers["preference-applied"]) == (202, "respond-async")
    job = first.json()
    assert first.headers["location"] == job["status_url"]
    assert 1 <= int(first.headers["retry-after"]) <= 30
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert again.json()["request_id"] == job["request_id"] == images["request_id"]
    assert [image["seed"] for image in images["data"]] == [42, 43]
    assert api.http.get(job["result_url"]).json()["status"] == "succeeded"


def test_calls_that_do_not_wait_need_no_place_and_refuse_what_cannot_be_rendered(
    api, claim, slot_with_references, monkeypatch
):
    monkeypatch.setattr(job_waits, "PLACES", 0)
    headers = {"Prefer": "respond-async"}

    edit = api.http.post("/v1/images/edits", data={"prompt": "a"}, files={"image": encoded()}, headers=headers)
    refused = api.http.post("/v1/images/generations", json={"prompt": "a", "size": "10x10"}, headers=headers)

    assert (edit.status_code, claim().job_id) == (202, edit.json()["request_id"])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "size")
