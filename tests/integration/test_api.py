"""The API over real HTTP; the tests act as the worker on the ledger."""

import hashlib
import io
import json
import re
import shutil
import threading
import tomllib
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from fastapi import BackgroundTasks
from PIL import Image

from api.doors.caller import Caller
from api.schemas.accepted import ReplayRequest
from api.submission import hash_body, prepare_job, store_jobs
from shared.adapters import validate
from shared.adapters.listing import list_adapter_files
from shared.errors import QueueFull
from shared.job import FEATURES, AdapterReport, ItemError, ItemSpec, Progress, TokenReport, pools
from shared.ledger import keys
from shared.ledger.slot_kinds import SlotKinds
from shared.ledger.spec_parts import join_texts
from shared.ledger.workers import WorkerRegistry
from shared.redis_url import RedisUrl
from shared.request import InferenceRequest, PromptItem
from shared.training_config.plan import plan_replay
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.slot import Slot
from worker.consumer.worker_state import WorkerState

ANYBODY = Caller(tenant="default", roles=frozenset({"admin"}), is_anonymous=True)

# The request of the reference API's flux2 page, letter for letter.
SEED_REQUEST = """{
  "model": "flux2",
  "trigger_word": "sks",
  "prompts": [
    {
      "prompt": "[trigger] a photo of a person",
      "width": 1024,
      "height": 1024,
      "seed": 42,
      "sample_steps": 25,
      "guidance_scale": 4.0,
      "neg": ""
    }
  ],
  "loras": [
    {
      "path": "my_lora_job/my_lora.safetensors",
      "network_multiplier": 1.0
    }
  ]
}"""
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def adapter(adapter_root, goldens):
    """A real adapter by the trainer, at the path that the request names."""
    path = adapter_root / "my_lora_job" / "my_lora.safetensors"
    path.parent.mkdir()
    shutil.copy(goldens / "adapters" / "lora_r4_bf16.safetensors", path)
    return path


def request(*prompts, **fields):
    return {"model": "flux2", "loras": [], "prompts": list(prompts) or [{"prompt": "a cat"}], **fields}


def post(api, body, **headers):
    return api.http.post("/v1/inference", json=body, headers=headers)


def accepted(api, body, **headers):
    answer = post(api, body, **headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


def specs(api, request_id):
    """Return the stored specs, which workers read; the ledger's view has only a report of them."""
    count = len(api.ledger.job(request_id).items)
    return [ItemSpec.model_validate(stored_spec(api, request_id, index)) for index in range(count)]


def stored_spec(api, request_id, index):
    texts = api.ledger.redis.lrange(keys.specs(request_id), 0, -1)
    return json.loads(join_texts([texts[0], *texts[index + 1 : index + 2]]))


def problem(answer, status, code):
    """Check that an answer is a well-formed problem; return its body."""
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["title"]
    return body


def claim(api, names=("flux2",)):
    return api.ledger.claim_next(names, slot="test", boot="test", warm="base")


def test_the_references_example_request_is_accepted_verbatim(api, adapter):
    answer = api.http.post("/v1/inference", content=SEED_REQUEST, headers={"Content-Type": "application/json"})

    assert answer.status_code == 202
    body = answer.json()
    assert body["status"] == "queued"
    assert body["status_url"] == f"{api.url}/v1/requests/{body['request_id']}/status"
    assert body["result_url"] == f"{api.url}/v1/requests/{body['request_id']}/result"
    assert RFC3339.fullmatch(body["created_at"])
    assert answer.headers["Location"] == body["status_url"]
    assert int(answer.headers["Retry-After"]) >= 1
    [spec] = specs(api, body["request_id"])
    assert (spec.prompt, spec.seed, spec.num_inference_steps, spec.guidance_scale, spec.width, spec.height) == (
        "sks a photo of a person",
        42,
        25,
        4.0,
        1024,
        1024,
    )
    [ref] = spec.adapters
    assert (ref.path, ref.multiplier) == ("my_lora_job/my_lora.safetensors", 1.0)
    assert ref.sha256 == hashlib.sha256(adapter.read_bytes()).hexdigest()


def test_fields_missing_in_a_request_get_the_models_defaults(api):
    request_id = accepted(api, request({"prompt": "one"}, {"prompt": "two"}))

    first, second = specs(api, request_id)

    assert (first.width, first.height, first.num_inference_steps, first.guidance_scale) == (1024, 1024, 25, 4.0)
    assert (first.seed, second.seed) == (42, 43)
    assert first.output_format == "png"


def test_a_seed_of_minus_one_is_drawn_when_the_job_is_accepted_and_never_again(api, finish):
    request_id = accepted(api, request({"prompt": "a", "seed": -1}, {"prompt": "b", "seed": -1}))

    first, second = [spec.seed for spec in specs(api, request_id)]

    assert 0 <= first < 2**32
    assert first != second
    claimed = claim(api)
    finish(api, claimed)
    result = api.http.get(f"/v1/requests/{request_id}/result").json()
    assert result["outputs"]["images"][0]["seed"] == first


def test_the_trigger_word_of_a_prompt_overrides_the_requests(api):
    body = request(
        {"prompt": "[trigger] and [trigger]"}, {"prompt": "[trigger]", "trigger_word": "ohwx"}, trigger_word="sks"
    )

    prompts = [spec.prompt for spec in specs(api, accepted(api, body))]

    assert prompts == ["sks and sks", "ohwx"]


def test_a_trigger_placeholder_without_a_trigger_word_stays_with_a_warning(api):
    answer = post(api, request({"prompt": "[trigger] a cat"})).json()

    assert specs(api, answer["request_id"])[0].prompt == "[trigger] a cat"
    assert any("[trigger]" in warning for warning in answer["warnings"])


def test_sizes_are_rounded_down_to_the_divisor_and_both_sizes_are_reported(api, finish):
    answer = post(api, request({"prompt": "a", "width": 1000, "height": 65})).json()
    finish(api, claim(api))

    image = api.http.get(f"/v1/requests/{answer['request_id']}/result").json()["outputs"]["images"][0]

    assert (image["width"], image["height"]) == (992, 64)
    assert (image["requested_width"], image["requested_height"]) == (1000, 65)
    assert any("1000x65 is rendered at 992x64" in warning for warning in answer["warnings"])


def test_a_negative_prompt_is_ignored_with_a_warning(api):
    answer = post(api, request({"prompt": "a", "neg": "blurry"})).json()

    assert specs(api, answer["request_id"])[0].neg == ""
    assert any("neg is ignored" in warning for warning in answer["warnings"])


@pytest.mark.parametrize("model", ["flux2_klein_4b", "flux2_klein_9b"])
def test_a_negative_prompt_reaches_klein(model, api):
    answer = post(api, request({"prompt": "a", "neg": "blurry"}, {"prompt": "b"}, model=model)).json()

    assert [spec.neg for spec in specs(api, answer["request_id"])] == ["blurry", ""]
    assert not any("neg" in warning for warning in answer["warnings"])


def test_a_negative_prompt_without_guidance_gives_a_warning(api):
    prompt = {"prompt": "a", "neg": "blurry", "guidance_scale": 1}

    answer = post(api, request(prompt, model="flux2_klein_4b")).json()

    assert any("neg has no effect at a guidance_scale of 1" in warning for warning in answer["warnings"])


def test_a_hidden_image_token_is_refused_for_dev_and_plain_text_for_klein(api):
    prompt = {"prompt": "a [IM[IMG]G] cat"}

    problem(post(api, request(prompt)), 400, "INVALID_REQUEST")
    assert post(api, request(prompt, model="flux2_klein_4b")).status_code == 202


def test_an_hf_token_is_accepted_and_leaves_no_trace(api, redis_client):
    answer = post(api, request(hf_token="hf_verysecret"))

    assert answer.status_code == 202
    assert "hf_verysecret" not in answer.text
    read = {
        "hash": redis_client.hgetall,
        "string": redis_client.get,
        "list": lambda name: redis_client.lrange(name, 0, -1),
        "zset": lambda name: redis_client.zrange(name, 0, -1),
    }
    for name in redis_client.scan_iter("*"):
        value = read[redis_client.type(name)](name)
        assert "hf_verysecret" not in json.dumps(value)


def test_a_job_is_polled_from_queue_to_images_that_can_be_fetched(api, finish):
    request_id = accepted(api, request({"prompt": "a"}, {"prompt": "b"}))
    url = f"/v1/requests/{request_id}/status"
    waiting = api.http.get(url).json()
    assert (waiting["status"], waiting["queue_position"], waiting["started_at"]) == ("in_queue", 0, None)

    claimed = claim(api)
    api.ledger.renew(claimed, Progress(stage="denoise", step=10, steps=25))
    running = api.http.get(url).json()
    assert running["status"] == "in_progress"
    assert [item["status"] for item in running["items"]] == ["in_progress", "in_queue"]
    assert running["items"][0]["progress"] == {"stage": "denoise", "step": 10, "steps": 25}
    assert running["progress"] == 0.2  # 10 of 50 steps
    assert api.http.get(url).headers["Retry-After"] == "1"

    finish(api, claimed, b"first")
    partly = api.http.get(f"/v1/requests/{request_id}/result").json()
    assert (partly["status"], len(partly["outputs"]["images"])) == ("in_progress", 1)

    finish(api, claim(api), b"second")
    done = api.http.get(url).json()
    assert (done["status"], done["progress"], done["error"], done["queue_position"]) == ("succeeded", 1.0, None, None)
    assert all(RFC3339.fullmatch(done[name]) for name in ("created_at", "started_at", "finished_at"))

    result = api.http.get(f"/v1/requests/{request_id}/result").json()
    images = result["outputs"]["images"]
    assert [image["index"] for image in images] == [0, 1]
    assert [httpx2.get(image["url"]).content for image in images] == [b"first", b"second"]
    assert images[0]["sha256"] == hashlib.sha256(b"first").hexdigest()
    assert RFC3339.fullmatch(images[0]["url_expires_at"])
    assert result["metadata"]["timings"]["prompts"][0] == {"index": 0, "denoise": 1.5}


def test_a_failed_image_is_reported_with_its_reason_and_finished_ones_are_kept(api, finish):
    request_id = accepted(api, request({"prompt": "a"}, {"prompt": "b"}))
    finish(api, claim(api))
    api.ledger.commit(claim(api), ItemError(code="out_of_memory", message="64x64 does not fit", retryable=False))

    status = api.http.get(f"/v1/requests/{request_id}/status").json()
    result = api.http.get(f"/v1/requests/{request_id}/result").json()

    assert (status["status"], status["error"]) == ("failed", "64x64 does not fit")
    assert result["errors"] == [
        {"index": 1, "code": "out_of_memory", "message": "64x64 does not fit", "retryable": False}
    ]
    assert len(result["outputs"]["images"]) == 1


@pytest.mark.parametrize(
    ("model", "loras"),
    [
        ("flux2", [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 0.8}]),
        # This one has negative prompts.
        ("flux2_klein_4b", []),
    ],
)
def test_an_image_of_a_result_has_the_names_of_a_request(api, adapter, finish, model, loras):
    prompt = {"prompt": "[trigger] a cat", "neg": "blurry", "width": 1000, "seed": -1, "sample_steps": 7}
    first = accepted(api, request(prompt, model=model, trigger_word="sks", loras=loras))
    claimed = api.ledger.claim_next([model], slot="test", boot="test", warm="base")
    effect = {"kind": "lora", "ranks": (4,), "layers_touched": 1, "layers_total": 2}
    scale = {"scale_range": (0.5, 2.0), "scale_sources": ("tensor",)}
    reports = tuple(
        AdapterReport(path=ref.path, sha256=ref.sha256, multiplier=ref.multiplier, **effect, **scale)
        for ref in claimed.spec.adapters
    )
    finish(api, claimed, adapters=reports)

    [image] = api.http.get(f"/v1/requests/{first}/result").json()["outputs"]["images"]
    again = {name: image[name] for name in PromptItem.model_fields if name in image}
    loras_again = [{name: entry[name] for name in ("path", "network_multiplier")} for entry in image["adapters"]]
    second = accepted(api, request(again, model=model, loras=loras_again))

    assert set(again) == {"prompt", "neg", "width", "height", "seed", "sample_steps", "sigmas", "guidance_scale"}
    assert again["sigmas"] is None
    assert loras_again == loras
    assert [entry["multiplier"] for entry in image["adapters"]] == [lora["network_multiplier"] for lora in loras]
    assert all(
        (entry["scale_range"], entry["scale_sources"]) == ([0.5, 2.0], ["tensor"]) for entry in image["adapters"]
    )
    [remade] = specs(api, second)
    assert remade == claimed.spec.model_copy(update={"requested_width": claimed.spec.width})


def test_noise_levels_reach_the_worker_count_as_steps_and_are_in_the_result(api, finish):
    levels = [1, 0.7, 0.1 + 0.2]
    job = accepted(api, request({"prompt": "a"}, {"prompt": "b", "sigmas": levels}))

    plain, few = specs(api, job)
    assert (plain.sigmas, plain.num_inference_steps) == ((), 25)
    assert (few.sigmas, few.num_inference_steps) == (tuple(levels), 3)
    # A worker of an earlier version may not have either of them.
    assert claim(api, pools("flux2", ["exact"], ["merged", "references", "large"])) is None
    names = pools("flux2", ["exact"], FEATURES)
    for claimed in (claim(api, names), claim(api, names)):
        finish(api, claimed)
    images = api.http.get(f"/v1/requests/{job}/result").json()["outputs"]["images"]

    assert [(image["sample_steps"], image["sigmas"]) for image in images] == [(25, None), (3, levels)]
    [used] = api.http.get("/v1/usage", params={"group_by": "tenant"}).json()["data"]
    assert used["megapixel_steps"] == pytest.approx(1.048576 * (25 + 3))


def test_workers_of_an_earlier_version_are_no_reason_to_refuse_noise_levels(api, slot_report):
    api.ledger.workers.beat("old", slot_report(features="merged,references,large"))

    answer = post(api, request({"prompt": "a"}, {"prompt": "b", "sigmas": [1, 0.5]}))

    assert answer.status_code == 202
    assert answer.json()["warnings"] == [
        "the live workers of flux2 are of an earlier version, which takes no sigmas; the job waits for one of this "
        "version"
    ]
    api.ledger.workers.beat("new", slot_report(features="merged,references,sigmas,large"))
    assert post(api, request({"prompt": "b", "sigmas": [1, 0.5]})).json()["warnings"] == []


def test_a_preset_gives_what_a_prompt_leaves_open_and_the_result_names_it(api, finish):
    [line] = [model for model in api.http.get("/v1/models").json()["models"] if model["id"] == "flux2"]
    [turbo] = line["presets"]
    prompts = [
        {"prompt": "a"},
        {"prompt": "b", "guidance_scale": 0},
        {"prompt": "c", "sample_steps": 4},
        {"prompt": "d", "sigmas": [1, 0.5]},
    ]

    answer = post(api, request(*prompts, preset="turbo")).json()
    rendered = [
        (spec.sigmas, spec.num_inference_steps, spec.guidance_scale) for spec in specs(api, answer["request_id"])
    ]

    levels = tuple(turbo["sigmas"])
    assert (len(levels), turbo["sample_steps"], turbo["guidance_scale"]) == (8, None, 2.5)
    assert rendered == [(levels, 8, 2.5), (levels, 8, 0.0), ((), 4, 2.5), ((1.0, 0.5), 2, 2.5)]
    assert any(turbo["adapter"] in warning for warning in answer["warnings"])
    names = pools("flux2", ["exact"], FEATURES)
    finish(api, claim(api, names))
    plain = accepted(api, request({"prompt": "a", "width": 64, "height": 64}))
    for _ in range(4):
        finish(api, claim(api, names))
    results = [api.http.get(f"/v1/requests/{job}/result").json() for job in (answer["request_id"], plain)]
    stated = [[(image["preset"], image["sample_steps"]) for image in one["outputs"]["images"]] for one in results]
    assert stated == [[("turbo", 8), ("turbo", 8), ("turbo", 4), ("turbo", 2)], [(None, 25)]]


def test_turbo_with_adapters_has_no_warning_because_nobody_knows_which_is_the_turbo_lora(api, adapter):
    loras = [{"path": "my_lora_job/my_lora.safetensors"}]

    assert not any("turbo" in text for text in post(api, request(preset="turbo", loras=loras)).json()["warnings"])


def test_before_the_first_image_the_outputs_are_null(api):
    result = api.http.get(f"/v1/requests/{accepted(api, request())}/result").json()

    assert (result["status"], result["outputs"], result["errors"]) == ("in_queue", None, [])


def test_canceling_a_queued_job_ends_it_and_repeating_the_call_changes_nothing(api):
    request_id = accepted(api, request())

    first = api.http.post(f"/v1/requests/{request_id}/cancel")
    second = api.http.post(f"/v1/requests/{request_id}/cancel")

    assert (first.status_code, first.json()["status"]) == (200, "canceled")
    assert second.json() == first.json()
    assert claim(api) is None


def test_the_progress_of_a_job_is_the_share_of_steps_that_gave_images(api, finish):
    queued = accepted(api, request())
    canceled = api.http.post(f"/v1/requests/{queued}/cancel").json()
    request_id = accepted(api, request(*[{"prompt": str(number), "sample_steps": 10} for number in range(4)]))

    def progress():
        return api.http.get(f"/v1/requests/{request_id}/status").json()["progress"]

    finish(api, claim(api))
    one_of_four = progress()
    running = claim(api)
    api.ledger.renew(running, Progress(stage="denoise", step=4, steps=10))
    and_four_steps = progress()
    # A worker that stops gives its item back, and the steps are lost.
    api.ledger.release(running, "drain")
    given_back = progress()
    error = ItemError(code="not_finite", message="NaN", retryable=False)
    running = claim(api)
    api.ledger.renew(running, Progress(stage="decode", step=10, steps=10))
    api.ledger.commit(running, error)
    one_failed = progress()
    last = api.http.post(f"/v1/requests/{request_id}/cancel").json()

    assert (canceled["status"], canceled["progress"]) == ("canceled", 0.0)
    assert [one_of_four, and_four_steps, given_back, one_failed] == [0.25, 0.35, 0.25, 0.25]
    assert (last["status"], last["progress"]) == ("canceled", 0.25)


def test_canceling_a_running_job_is_shown_until_the_worker_learns_of_it(api):
    request_id = accepted(api, request())
    claimed = claim(api)

    status = api.http.post(f"/v1/requests/{request_id}/cancel").json()

    assert (status["status"], status["cancel_requested"]) == ("in_progress", True)
    assert api.ledger.commit(claimed, None) in ("committed", "canceled")
    assert api.http.get(f"/v1/requests/{request_id}/status").json()["status"] == "canceled"


@pytest.mark.parametrize("path", ["status", "result"])
def test_an_unknown_request_is_404(api, path):
    body = problem(api.http.get(f"/v1/requests/{uuid.uuid4()}/{path}"), 404, "REQUEST_NOT_FOUND")

    assert "Request not found" in body["detail"]


def test_canceling_an_unknown_request_is_404(api):
    problem(api.http.post("/v1/requests/nothing/cancel"), 404, "REQUEST_NOT_FOUND")


def test_repeating_a_call_with_its_idempotency_key_returns_the_same_job(api):
    first = post(api, request(), **{"Idempotency-Key": "k1"})
    again = post(api, request(), **{"Idempotency-Key": "k1"})

    assert again.json() == first.json()
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert api.ledger.queue_length("flux2") == 1


def test_an_idempotency_key_with_another_body_is_refused(api):
    post(api, request(), **{"Idempotency-Key": "k2"})

    problem(post(api, request({"prompt": "other"}), **{"Idempotency-Key": "k2"}), 422, "IDEMPOTENCY_KEY_REUSED")


def test_a_repeat_gets_its_job_even_if_the_adapter_file_is_gone(api, adapter):
    body = request(loras=[{"path": "my_lora_job/my_lora.safetensors"}])
    first = post(api, body, **{"Idempotency-Key": "k4"})
    adapter.unlink()

    again = post(api, body, **{"Idempotency-Key": "k4"})

    assert (again.status_code, again.json()) == (202, first.json())


def test_concurrent_submits_with_one_key_make_one_job(api):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(api, request(), **{"Idempotency-Key": "k3"}).json(), range(16)))

    assert len({answer["request_id"] for answer in answers}) == 1
    assert api.ledger.queue_length("flux2") == 1


def test_each_accepted_item_sends_a_wake_up(api, redis_client, wait_until):
    accepted(api, request({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}))

    wait_until(lambda: redis_client.llen(keys.wake_list("flux2")) == 3)


def test_a_full_queue_answers_429_with_retry_after(api):
    accepted(api, request(*[{"prompt": "a"}] * 50))

    answer = post(api, request())

    found = problem(answer, 429, "queue_full")
    assert found["detail"].startswith("1 item was asked for, 50 items are queued and the cap is 50")
    assert int(answer.headers["Retry-After"]) > 0


def test_retry_after_and_the_range_follow_the_estimate(api):
    api.ledger.redis.set(keys.pace("flux2"), 100_000)

    answer = post(api, request(*[{"prompt": "a"}] * 2))

    status = api.http.get(answer.headers["Location"])
    # Two images of 100 s: the deviation of an unknown size is 50 s, thrice, and the wait is 50 % less or 70 % more.
    # A part of the wait has passed when the status is read.
    assert status.json()["eta_s"] == pytest.approx(200, abs=5)
    assert status.json()["eta_range_s"] == pytest.approx([0, 420], abs=10)
    assert (answer.headers["Retry-After"], status.headers["Retry-After"]) == ("20", "20")


def test_a_full_queue_says_when_it_may_have_room(api):
    api.ledger.redis.set(keys.pace("flux2"), 10_000)
    accepted(api, request(*[{"prompt": "a"}] * 48))

    answer = post(api, request(*[{"prompt": "a"}] * 10))

    problem(answer, 429, "queue_full")
    # Eight images have to be claimed: one now, and one each 10 s.
    assert answer.headers["Retry-After"] == "70"


def test_a_job_that_can_never_fit_into_the_queue_is_refused_for_good(api):
    accepted(api, request())

    answer = post(api, request(*[{"prompt": "a"}] * 51))

    found = problem(answer, 400, "JOB_TOO_LARGE")
    assert found["detail"].startswith("51 items were asked for, 1 item is queued and the cap is 50")
    assert "Retry-After" not in answer.headers
    assert api.ledger.queue_length("flux2") == 1


@pytest.mark.parametrize(
    ("body", "status", "code", "path"),
    [
        (request(model="flux9"), 400, "MODEL_NOT_FOUND", "model"),
        (request(loras=[{"path": "nothing.safetensors"}]), 400, "LORA_NOT_FOUND", "loras[0].path"),
        (request(loras=[{"path": "../etc/x.safetensors"}]), 422, "INVALID_LORA", "loras[0].path"),
        (request(loras=[{"path": "/etc/passwd"}]), 422, "INVALID_LORA", "loras[0].path"),
        (request(loras=[{"path": "https://x.org/a.safetensors"}]), 422, "INVALID_LORA", "loras[0].path"),
        (
            request(loras=[{"path": "a.safetensors", "transformer": "low"}]),
            400,
            "MOE_FORMAT_NOT_SUPPORTED",
            "loras[0].transformer",
        ),
        (request({"prompt": "a", "width": 63}), 422, "VALIDATION_ERROR", "prompts[0].width"),
        (request({"prompt": "a", "height": 4097}), 422, "VALIDATION_ERROR", "prompts[0].height"),
        (request({"prompt": "a", "sample_steps": 0}), 422, "VALIDATION_ERROR", "prompts[0].sample_steps"),
        (request({"prompt": "a", "sample_steps": 151}), 422, "VALIDATION_ERROR", "prompts[0].sample_steps"),
        (request({"prompt": "a", "sigmas": [1, 0.5], "sample_steps": 2}), 422, "VALIDATION_ERROR", "prompts[0].sigmas"),
        (request({"prompt": "ok"}, {"prompt": "a", "sigmas": []}), 422, "VALIDATION_ERROR", "prompts[1].sigmas"),
        (request({"prompt": "a", "sigmas": [1, 0.5, 0.5]}), 422, "VALIDATION_ERROR", "prompts[0].sigmas"),
        (request({"prompt": "a", "sigmas": [0.5, 1]}), 422, "VALIDATION_ERROR", "prompts[0].sigmas"),
        # The same in single precision, and 0 there.
        (request({"prompt": "a", "sigmas": [0.5, 0.5 - 1e-9]}), 422, "VALIDATION_ERROR", "prompts[0].sigmas"),
        (request({"prompt": "a", "sigmas": [0.5, 1e-50]}), 422, "VALIDATION_ERROR", "prompts[0].sigmas"),
        (request({"prompt": "a", "sigmas": [1.1]}), 422, "VALIDATION_ERROR", "prompts[0].sigmas[0]"),
        (request({"prompt": "a", "sigmas": [1, 0]}), 422, "VALIDATION_ERROR", "prompts[0].sigmas[1]"),
        (
            request({"prompt": "a", "sigmas": [1 - step / 151 for step in range(151)]}),
            422,
            "VALIDATION_ERROR",
            "prompts[0].sigmas",
        ),
        (
            request({"prompt": "a"}, {"prompt": "a", "sigmas": [1]}, engine="ai-toolkit"),
            400,
            "INVALID_REQUEST",
            "prompts[1].sigmas",
        ),
        (request(preset="turboo"), 400, "INVALID_REQUEST", "preset"),
        (request(preset="turbo", model="flux2_klein_4b"), 400, "INVALID_REQUEST", "preset"),
        (request(preset="turbo", engine="ai-toolkit"), 400, "INVALID_REQUEST", "preset"),
        (request({"prompt": "a", "guidance_scale": 20.1}), 422, "VALIDATION_ERROR", "prompts[0].guidance_scale"),
        (request({"prompt": "a", "seed": -2}), 422, "VALIDATION_ERROR", "prompts[0].seed"),
        (request({"prompt": "a", "seed": 2**63}), 422, "VALIDATION_ERROR", "prompts[0].seed"),
        (request({"prompt": "ok"}, {"prompt": "a [IM[IMG]G] b"}), 400, "INVALID_REQUEST", "prompts[1].prompt"),
        (request({"prompt": "[trigger]", "trigger_word": "[IM[IMG]G]"}), 400, "INVALID_REQUEST", "prompts[0].prompt"),
        (
            request({"prompt": "[trigger]" * 1000, "trigger_word": "a" * 10_000}),
            400,
            "INVALID_REQUEST",
            "prompts[0].prompt",
        ),
        (
            # 65 kB of body that would be 1.2 MB of prompts; `api` has a bound of 64 KiB.
            request(*[{"prompt": "[trigger]"}] * 300, trigger_word="\N{SNOWMAN}" * 4_000),
            400,
            "INVALID_REQUEST",
            "prompts[5].prompt",
        ),
        (request(engine="fast", adapter_mode="live"), 400, "INVALID_REQUEST", "adapter_mode"),
        (request({"prompt": "a\0b"}), 422, "VALIDATION_ERROR", "prompts[0].prompt"),
        (request({"prompt": "a", "smaple_steps": 3}), 422, "VALIDATION_ERROR", "prompts[0].smaple_steps"),
        (
            request(loras=[{"path": "a", "network_multiplier": 2.5}]),
            422,
            "VALIDATION_ERROR",
            "loras[0].network_multiplier",
        ),
        (request(prompts=[]), 422, "VALIDATION_ERROR", "prompts"),
        ({"model": "flux2", "prompts": [{"prompt": "a"}]}, 422, "VALIDATION_ERROR", "loras"),
        (request(output_format="gif"), 422, "VALIDATION_ERROR", "output_format"),
        ([], 422, "VALIDATION_ERROR", "body"),
    ],
)
def test_bad_input_is_refused_with_its_path_and_nothing_is_stored(api, redis_client, body, status, code, path):
    found = problem(post(api, body), status, code)

    assert path in [field["path"] for field in found["errors"]]
    assert redis_client.keys(f"{keys.PREFIX}job:*") == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        '{"model": "flux2", "loras": [], "prompts": [{"prompt": "a", "guidance_scale": NaN}]}',
        '{"model": "flux2", "loras": [], "prompts": [{"prompt": "a", "guidance_scale": 1e999}]}',
        '{"model": "flux2", "loras": [], "prompts": [{"prompt": "\\ud800"}]}',
        "[" * 30_000,
        '{"model": "\\ud800", "loras": [], "prompts": [{"prompt": "a"}]}',
        '{"model": "flux2", "loras": [], "prompts": [{"prompt": "a", "ctrl_img": "\\ud800"}]}',
    ],
)
def test_malformed_json_is_a_problem_and_not_a_crash(api, text):
    answer = api.http.post("/v1/inference", content=text, headers={"Content-Type": "application/json"})

    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/inference", "/v1/replays"])
@pytest.mark.parametrize(
    "content_type",
    # What `curl -d` and any web page can send without a preflight, and a body without a type.
    [
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-8",
        "multipart/form-data",
        "application/jsonx",
        None,
    ],
)
def test_a_body_that_is_not_declared_as_json_is_refused_with_the_option_of_curl(api, redis_client, path, content_type):
    body = json.dumps(request() if path == "/v1/inference" else {"config": "a: 1"}).encode()

    answer = api.http.post(path, content=body, headers={"content-type": content_type} if content_type else {})

    detail = problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")["detail"]
    assert (content_type or "has no content type") in detail
    assert "send content-type: application/json (with curl: -H 'content-type: application/json'" in detail
    assert redis_client.keys(f"{keys.PREFIX}job:*") == []


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.flux2+json"]
)
def test_a_body_that_is_declared_as_json_is_accepted(api, content_type):
    answer = api.http.post(
        "/v1/inference", content=json.dumps(request()).encode(), headers={"content-type": content_type}
    )

    assert answer.status_code == 202


def test_a_very_long_content_type_is_not_repeated(api):
    answer = api.http.post("/v1/inference", content=b"{}", headers={"content-type": "text/" + "x" * 5_000})

    assert len(problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")["detail"]) < 400


def test_calls_without_a_body_need_no_content_type(api):
    request_id = accepted(api, request())

    assert api.http.post(f"/v1/requests/{request_id}/cancel").status_code == 200
    assert problem(api.http.post("/v1/inference"), 422, "VALIDATION_ERROR")["detail"] == "body: Field required"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"model": "flux2",\n  "prompts": [}', "not JSON: line 2, column 15: expected a value, found '}'"),
        (b"{'model': 'flux2'}", 'not JSON: line 1, column 2: expected a name in double quotes, found "\'"'),
        (b'{"model" "flux2"}', "not JSON: line 1, column 10: expected ':', found '\"'"),
        (
            b'{"model": "flux2"',
            "not JSON: line 1, column 18: expected ',' or a closing bracket, found the end of the body",
        ),
        (b"{} {}", "not JSON: line 1, column 4: expected the end of the body, found '{'"),
        (b'{"hf_token": "hf_secret', "not JSON: line 1, column 14: unterminated string"),
        (b'{"prompt": "a\nb"}', "not JSON: line 1, column 14: invalid control character"),
        (
            '{"prompt":\n "\N{SNOWMAN}'.encode() + b'\xff"}',
            "not UTF-8: line 2, column 4 has the invalid byte 0xff (offset 16)",
        ),
        (b"[" * 30_000, "too many levels of lists and objects"),
    ],
)
def test_a_broken_body_is_answered_with_the_place_of_its_fault(api, body, detail):
    answer = api.http.post("/v1/inference", content=body, headers={"content-type": "application/json"})

    found = problem(answer, 400, "BAD_REQUEST")["detail"]
    assert detail in found
    assert "secret" not in found


def test_a_body_over_the_cap_is_413_even_when_its_length_is_not_announced(api):
    def chunks():
        for _ in range(100):
            yield b" " * 4096

    problem(api.http.post("/v1/inference", content=chunks()), 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [("0", 413, "BODY_TOO_LARGE"), ("{}", 413, "BODY_TOO_LARGE"), ('"' + "a, " * 100 + '"', 422, "VALIDATION_ERROR")],
)
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(api, serve_api, value, status, code):
    small = api.settings.model_copy(update={"api": api.settings.api.model_copy(update={"max_prompts": 10})})
    with serve_api(small) as served:
        limit = served.http.get("/v1/models").json()["limits"]["max_values"]
        # Commas in texts do not count.
        values = ",".join([value] * (limit if len(value) < 9 else 200))
        body = f'{{"model": "flux2", "loras": [], "prompts": [{values}]}}'

        answer = served.http.post("/v1/inference", content=body, headers={"Content-Type": "application/json"})

    problem(answer, status, code)


def test_the_largest_request_has_room_for_the_noise_levels_of_few_steps(api):
    prompt = {"prompt": "a", "width": 64, "height": 64, "sigmas": [1 - step / 32 for step in range(32)]}

    limits = api.http.get("/v1/models").json()["limits"]

    assert limits["max_values"] > 1000 * (len(prompt) + len(prompt["sigmas"]))
    assert accepted(api, request(*[prompt] * 50))


def test_an_answer_lists_at_most_a_thousand_fields_at_fault(api):
    body = problem(post(api, {"model": "flux2", "loras": [], "prompts": [{}] * 1500}), 422, "VALIDATION_ERROR")

    assert body["detail"] == "prompts[0].prompt: Field required (and 1499 more)"
    assert len(body["errors"]) == 1000


def test_a_very_long_model_id_is_not_repeated(api):
    body = problem(post(api, {**request(), "model": "x" * 20_000}), 400, "MODEL_NOT_FOUND")

    assert len(body["detail"]) < 200


def test_a_file_that_is_not_an_adapter_is_refused_with_the_reason(api, adapter_root):
    (adapter_root / "page.safetensors").write_text("<!DOCTYPE html><html>Sign in</html>")

    body = problem(post(api, request(loras=[{"path": "page.safetensors"}])), 422, "INVALID_LORA")

    assert "HTML" in body["detail"]


def test_an_adapter_is_checked_against_the_base_model_that_workers_loaded(api, adapter, slot_report):
    api.ledger.workers.beat("gpu-0", slot_report())
    body = request(loras=[{"path": "my_lora_job/my_lora.safetensors"}])
    unchecked = post(api, body).json()
    assert any("form only" in warning for warning in unchecked["warnings"])

    api.ledger.workers.publish_base_model("flux2", revision="r", layers={"img_in": (64, 128)})
    found = problem(post(api, body), 422, "INVALID_LORA")
    assert "matches no layer of flux2" in found["detail"]

    layers = {f"{kind}_blocks.{n}.{name}": (1, 1) for kind, n, name in _golden_layers()}
    api.ledger.workers.publish_base_model("flux2", revision="r", layers=layers)
    found = problem(post(api, body), 422, "LORA_MISMATCH")
    assert "expected a (1, 1) update" in found["detail"]


def _golden_layers():
    for n in range(2):
        for side in ("img", "txt"):
            for name in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2"):
                yield "double", n, f"{side}_{name}"
        for name in ("linear1", "linear2"):
            yield "single", n, name


def test_requests_are_listed_newest_first_in_pages(api):
    ids = [accepted(api, request()) for _ in range(3)]
    api.http.post(f"/v1/requests/{ids[0]}/cancel")

    first = api.http.get("/v1/requests", params={"limit": 2}).json()
    second = api.http.get("/v1/requests", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    canceled = api.http.get("/v1/requests", params={"status": "canceled"}).json()

    assert [job["request_id"] for job in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"]
    assert [job["request_id"] for job in second["data"]] == [ids[0]]
    assert (second["has_more"], second["next_cursor"]) == (False, None)
    assert [job["request_id"] for job in canceled["data"]] == [ids[0]]
    assert first["data"][0]["items"]["in_queue"] == 1


def test_the_listing_understands_the_words_of_status_and_of_submit(api, finish):
    made = {}
    made["in_progress"] = accepted(api, request())
    claim(api)
    made["succeeded"] = accepted(api, request())
    finish(api, claim(api))
    made["failed"] = accepted(api, request())
    api.ledger.commit(claim(api), ItemError(code="not_finite", message="NaN", retryable=False))
    made["canceled"] = accepted(api, request())
    api.http.post(f"/v1/requests/{made['canceled']}/cancel")
    made["in_queue"] = accepted(api, request())
    # The words of the submit and of the ledger.
    made |= {"queued": made["in_queue"], "running": made["in_progress"]}

    found = {word: api.http.get("/v1/requests", params={"status": word}).json()["data"] for word in made}

    assert {word: [line["request_id"] for line in lines] for word, lines in found.items()} == {
        word: [request_id] for word, request_id in made.items()
    }
    assert [found[word][0]["status"] for word in ("queued", "running")] == ["in_queue", "in_progress"]


def test_an_unknown_status_is_refused_with_the_words_that_are_known(api):
    answer = api.http.get("/v1/requests", params={"status": "cancelled"})

    detail = problem(answer, 422, "VALIDATION_ERROR")["detail"]
    words = ("in_queue", "in_progress", "succeeded", "failed", "canceled", "queued", "running")
    assert all(f"'{word}'" in detail for word in words)


def test_a_page_with_a_filter_may_be_empty_while_more_jobs_follow(api, monkeypatch):
    monkeypatch.setattr("shared.ledger.listing._JOBS_PER_STEP", 1)
    monkeypatch.setattr("shared.ledger.listing._STEPS_PER_PAGE", 2)
    ids = [accepted(api, request()) for _ in range(3)]
    api.http.post(f"/v1/requests/{ids[0]}/cancel")

    first = api.http.get("/v1/requests", params={"status": "canceled"}).json()
    second = api.http.get("/v1/requests", params={"status": "canceled", "cursor": first["next_cursor"]}).json()

    assert (first["data"], first["has_more"]) == ([], True)
    assert [job["request_id"] for job in second["data"]] == [ids[0]]


def test_a_listing_of_an_unknown_model_is_refused_as_a_submit_is(api):
    listed = problem(api.http.get("/v1/requests", params={"model": "sdxl"}), 400, "MODEL_NOT_FOUND")
    submitted = problem(post(api, {**request(), "model": "sdxl"}), 400, "MODEL_NOT_FOUND")

    assert listed == submitted
    assert api.http.get("/v1/requests", params={"model": "flux2_klein_4b"}).json()["data"] == []


def test_an_empty_model_lists_the_jobs_of_every_model(api):
    accepted = post(api, request()).json()

    listed = api.http.get("/v1/requests", params={"model": ""}).json()

    assert [job["request_id"] for job in listed["data"]] == [accepted["request_id"]]


def test_polls_are_answered_while_more_listings_wait_than_there_are_threads(api, monkeypatch, wait_until):
    request_id = accepted(api, request())
    entered, release = [], threading.Event()
    read = api.services.ledger.jobs

    def read_slowly(**kwargs):
        entered.append(None)
        assert release.wait(30)
        return read(**kwargs)

    monkeypatch.setattr(api.services.ledger, "jobs", read_slowly)
    # FastAPI has 40 threads.
    with ThreadPoolExecutor(60) as callers:
        listings = [callers.submit(api.http.get, "/v1/requests", params={"status": "failed"}) for _ in range(60)]
        wait_until(lambda: len(entered) == 2, what="two listings that are read")
        try:
            polls = [api.http.get(f"/v1/requests/{request_id}/status").status_code for _ in range(20)]
            at_once = len(entered)
        finally:
            release.set()
        statuses = [call.result().status_code for call in listings]

    assert polls == [200] * 20
    assert at_once == 2
    assert statuses == [200] * 60


@pytest.mark.parametrize("cursor", ["xyz", "-5", "f" * 4000])
def test_a_malformed_cursor_is_refused(api, cursor):
    problem(api.http.get("/v1/requests", params={"cursor": cursor}), 422, "VALIDATION_ERROR")


def test_the_models_are_listed_with_their_defaults_and_licences(api):
    models = {model["id"]: model for model in api.http.get("/v1/models").json()["models"]}

    assert {name: model["base_model"] for name, model in models.items()} == {
        "flux2": "black-forest-labs/FLUX.2-dev",
        "flux2_klein_4b": "black-forest-labs/FLUX.2-klein-base-4B",
        "flux2_klein_9b": "black-forest-labs/FLUX.2-klein-base-9B",
        "flux2_klein_4b_distilled": "black-forest-labs/FLUX.2-klein-4B",
        "flux2_klein_9b_distilled": "black-forest-labs/FLUX.2-klein-9B",
    }
    for name, model in models.items():
        distilled = name.endswith("_distilled")
        assert (model["default_steps"], model["default_guidance_scale"]) == ((4, 1.0) if distilled else (25, 4.0))
        assert model["default_seed"] == 42
        assert model["distilled_from"] == (name.removesuffix("_distilled") if distilled else None)
        assert (model["resolution_divisor"], model["requires_control_image"]) == (16, False)
        assert (model["slots"], model["base_revision"]) == (0, None)
    assert [model["uses_negative_prompt"] for model in models.values()] == [False, True, True, True, True]
    assert "Non-Commercial" in models["flux2"]["license"]
    for name in ("flux2_klein_4b", "flux2_klein_4b_distilled"):
        assert "Apache" in models[name]["license"]
    for name in ("flux2_klein_9b", "flux2_klein_9b_distilled"):
        assert "Non-Commercial" in models[name]["license"]


def test_a_distilled_model_renders_four_steps_without_guidance_by_default_and_other_values_with_warnings(
    api, slot_report
):
    model = "flux2_klein_4b_distilled"
    api.ledger.workers.beat("gpu-0", slot_report(model=model))
    prompts = [
        {"prompt": "a"},
        {"prompt": "b", "sample_steps": 25, "guidance_scale": 4, "neg": "blurry"},
        {"prompt": "c", "sample_steps": 30, "guidance_scale": 5},
        {"prompt": "d", "neg": "blurry"},
    ]

    plain, unusual = (post(api, request(*chosen, model=model)).json() for chosen in (prompts[:1], prompts))

    rendered = [(spec.num_inference_steps, spec.guidance_scale, spec.neg) for spec in specs(api, unusual["request_id"])]
    assert rendered == [(4, 1.0, ""), (25, 4.0, "blurry"), (30, 5.0, ""), (4, 1.0, "blurry")]
    assert plain["warnings"] == []
    assert unusual["warnings"] == [
        "prompts[1].sample_steps is 25, but flux2_klein_4b_distilled is distilled to 4: more take time and rarely "
        "help; leave it out, or request flux2_klein_4b",
        "prompts[1].guidance_scale is 4, but flux2_klein_4b_distilled is distilled to work without guidance: more than "
        "1 doubles the time and oversaturates images; leave it out, or request flux2_klein_4b",
        "prompts[3].neg has no effect at a guidance_scale of 1; request flux2_klein_4b",
    ]


def write_adapter(adapter_root, trained_on):
    metadata = {} if trained_on is None else {"ss_base_model_version": trained_on}
    header = {
        "__metadata__": metadata,
        "diffusion_model.img_in.lora_A.weight": {"dtype": "F32", "shape": [1, 128], "data_offsets": [0, 512]},
        "diffusion_model.img_in.lora_B.weight": {"dtype": "F32", "shape": [64, 1], "data_offsets": [512, 768]},
    }
    text = json.dumps(header).encode()
    (adapter_root / "klein.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(768))


@pytest.mark.parametrize(
    ("trained_on", "requested"),
    [
        ("flux2_klein_4b", "flux2_klein_4b_distilled"),
        ("flux2_klein_9b", "flux2_klein_9b_distilled"),
    ],
)
def test_an_adapter_of_a_base_model_runs_on_the_distilled_one_with_a_warning_at_submit_and_in_the_result(
    api, adapter_root, trained_on, requested
):
    write_adapter(adapter_root, trained_on)

    answer = post(api, request(model=requested, loras=[{"path": "klein.safetensors"}] * 2)).json()

    warning = (
        f"klein.safetensors was trained on {trained_on} and runs on {requested}, where its effect may be weaker or "
    )
    (found,) = [text for text in answer["warnings"] if "trained on" in text]
    assert found == f"{warning}stronger; request {trained_on} for images as in training"
    result = api.http.get(f"/v1/requests/{answer['request_id']}/result").json()
    assert found in result["metadata"]["warnings"]


@pytest.mark.parametrize("trained_on", ["flux2_klein_4b_distilled", None])
def test_an_adapter_of_the_distilled_model_or_of_an_unnamed_one_runs_on_it_without_a_warning(
    api, adapter_root, trained_on
):
    write_adapter(adapter_root, trained_on)

    answer = post(api, request(model="flux2_klein_4b_distilled", loras=[{"path": "klein.safetensors"}])).json()

    assert [text for text in answer["warnings"] if "trained on" in text] == []


@pytest.mark.parametrize(
    ("trained_on", "requested"),
    [
        ("flux2_klein_4b_distilled", "flux2_klein_4b"),
        ("flux2_klein_9b", "flux2_klein_4b_distilled"),
        ("flux2_klein_9b_distilled", "flux2_klein_4b_distilled"),
        ("flux2", "flux2_klein_9b_distilled"),
    ],
)
def test_an_adapter_of_another_model_is_refused_with_the_model_to_request(api, adapter_root, trained_on, requested):
    write_adapter(adapter_root, trained_on)

    body = problem(post(api, request(model=requested, loras=[{"path": "klein.safetensors"}])), 422, "INVALID_LORA")

    assert f"trained on {trained_on!r}" in body["detail"]
    assert "request the model that it was trained on" in body["detail"]


def test_health_covers_the_process_and_ready_covers_what_it_depends_on(api):
    assert api.http.get("/health").json() == {"status": "healthy"}

    ready = api.http.get("/ready")

    assert ready.status_code == 200
    assert ready.json()["checks"] == {"redis": "ok", "storage": "ok", "caretaker": "ok", "courier": "ok"}


def test_the_number_of_workers_is_unknown_while_redis_is_away(api, serve_api):
    away = api.settings.redis.model_copy(update={"url": RedisUrl.parse("redis://127.0.0.1:1/0"), "timeout_s": 0.3})

    with serve_api(api.settings.model_copy(update={"redis": away})) as served:
        ready = served.http.get("/ready")

    assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
    assert (ready.json()["workers"], ready.json()["warnings"]) == (None, [])


def test_ready_warns_while_no_worker_is_running(api, slot_report):
    without = api.http.get("/ready")
    api.ledger.workers.beat("gpu-0", slot_report())
    with_worker = api.http.get("/ready")
    api.ledger.workers.remove("gpu-0")
    api.ledger.redis.set(keys.SLOTS_MISSING, 1)
    after_stall = api.http.get("/ready")

    assert [answer.status_code for answer in (without, with_worker, after_stall)] == [200, 200, 200]
    assert [answer.json()["status"] for answer in (without, with_worker, after_stall)] == ["ready"] * 3
    assert [answer.json()["workers"] for answer in (without, with_worker, after_stall)] == [0, 1, 0]
    assert without.json()["warnings"] == [
        "no worker is running: jobs are accepted and wait; start one with flux2 worker"
    ]
    assert with_worker.json()["warnings"] == []
    assert after_stall.json()["warnings"] == ["no worker has reported since Redis stalled; ask again in a few seconds"]


def test_a_redis_that_refuses_the_apis_user_is_named(api, redis_client, redis_url, serve_api, caplog):
    redis_client.acl_setuser(
        "limited", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-zadd", "-info"]
    )
    limited = api.settings.redis.model_copy(
        update={"url": RedisUrl.parse(redis_url.replace("redis://", "redis://limited:pw@"))}
    )
    try:
        with serve_api(api.settings.model_copy(update={"redis": limited})) as served:
            refused = post(served, request())
            ready = served.http.get("/ready")
            polled = served.http.get("/v1/requests/unknown")
    finally:
        redis_client.acl_deluser("limited")

    detail = problem(refused, 503, "ledger_unavailable")["detail"]
    assert detail.startswith("Redis refuses this user: The user executing the script can't run this command")
    assert "allow it with ACL SETUSER" in detail
    assert (ready.status_code, ready.json()["workers"]) == (503, 0)
    assert "Redis refuses this user" in ready.json()["checks"]["redis"]
    # A refused call does not stop those that are allowed.
    problem(polled, 404, "REQUEST_NOT_FOUND")
    assert not [record for record in caplog.records if record.exc_info]


def test_ready_warns_of_a_redis_that_may_lose_jobs_and_of_a_failing_device(api):
    api.ledger.redis.config_set("appendfsync", "everysec")
    slot = Slot(name="bad", model="flux2", device="cpu", revision="r", precision="fp32", engines=("exact",))
    state = WorkerState()
    heartbeat = Heartbeat(api.ledger, slot, state, SimpleNamespace(warm_key="base"))
    state.change_condition("faulty")
    try:
        ready = api.http.get("/ready")
    finally:
        api.ledger.redis.config_set("appendfsync", "always")
        heartbeat.stop()

    assert ready.status_code == 200
    durable, device = ready.json()["warnings"]
    assert "appendfsync is everysec" in durable
    assert "bad" in device


def rewrite(api, request_id, field, **changes):
    """Store a part of the job's first item as another version would."""
    [item, *_] = api.ledger.job(request_id).items
    stored = stored_spec(api, request_id, 0) if field == "spec" else item.result.model_dump(mode="json")
    api.ledger.redis.hset(keys.item(f"{request_id}:0"), field, json.dumps({**stored, **changes}))


def test_the_code_of_a_spec_that_no_worker_can_read_reaches_the_client(api, finish):
    request_id = accepted(api, request({"prompt": "a cat"}, {"prompt": "a dog"}))
    api.ledger.redis.hset(keys.item(f"{request_id}:0"), "spec", '{"model": "flux2", "future": 1}')
    # The worker cannot read the first image's spec, says so, and takes the second.
    finish(api, claim(api))

    status = api.http.get(f"/v1/requests/{request_id}/status")
    result = api.http.get(f"/v1/requests/{request_id}/result")

    assert (status.status_code, result.status_code) == (200, 200)
    assert [item["error"] and item["error"]["code"] for item in status.json()["items"]] == ["unreadable_spec", None]
    # 25 steps of the dog, and one that stands for the unknown number of the cat's.
    assert (status.json()["status"], status.json()["progress"]) == ("failed", round(25 / 26, 4))
    assert [failure["code"] for failure in result.json()["errors"]] == ["unreadable_spec"]
    assert [image["prompt"] for image in result.json()["outputs"]["images"]] == ["a dog"]
    assert result.json()["metadata"]["warnings"] == status.json()["warnings"]


def test_an_image_made_from_a_newer_versions_spec_is_reported_with_its_parameters(api, finish):
    request_id = accepted(api, request({"prompt": "a cat", "seed": 7}))
    finish(api, claim(api))
    rewrite(api, request_id, "spec", future=1, engine="turbo")

    (image,) = api.http.get(f"/v1/requests/{request_id}/result").json()["outputs"]["images"]

    assert (image["prompt"], image["seed"]) == ("a cat", 7)


def test_an_image_whose_spec_cannot_be_read_has_no_parameters_and_a_warning(api, finish):
    request_id = accepted(api, request({"prompt": "a cat"}))
    finish(api, claim(api))
    rewrite(api, request_id, "spec", seed={"of": "another version"})

    body = api.http.get(f"/v1/requests/{request_id}/result").json()

    (image,) = body["outputs"]["images"]
    assert (image["prompt"], image["seed"], image["sample_steps"]) == (None, None, None)
    assert image["url"]
    warning = "image 0: this API cannot read its parameters, which another version stored"
    assert body["metadata"]["warnings"][-1] == warning


def test_a_result_that_cannot_be_read_gives_a_warning_and_no_image(api, finish):
    request_id = accepted(api, request())
    finish(api, claim(api))
    rewrite(api, request_id, "result", format="of another version")

    body = api.http.get(f"/v1/requests/{request_id}/result").json()

    assert (body["status"], body["outputs"]) == ("succeeded", None)
    warning = "image 0: this API cannot read its result, which another version stored"
    assert body["metadata"]["warnings"][-1] == warning


def test_an_image_has_the_warnings_of_its_worker_and_those_of_earlier_workers_have_none(api, store_image):
    request_id = accepted(api, request({"prompt": "a cat"}, {"prompt": "a dog"}))
    warned, plain = claim(api), claim(api)
    stored = store_image(api, warned, b"cat").model_copy(update={"warnings": ("the prompt was cut",)})
    api.ledger.commit(warned, stored)
    api.ledger.commit(plain, store_image(api, plain, b"dog"))
    texts = api.ledger.redis.lrange(keys.results(request_id), 0, -1)

    images = api.http.get(f"/v1/requests/{request_id}/result").json()["outputs"]["images"]

    assert [image["warnings"] for image in images] == [["the prompt was cut"], []]
    # As earlier versions store it.
    assert ["warnings" in text for text in texts] == [True, False]


def test_progress_counts_the_steps_that_the_worker_reports_if_the_spec_cannot_be_read(api):
    request_id = accepted(api, request({"prompt": "a cat"}, {"prompt": "a dog", "sample_steps": 10}))
    api.ledger.renew(claim(api), Progress(stage="denoise", step=3, steps=20))
    rewrite(api, request_id, "spec", seed=None)

    # 3 of 20 + 10.
    assert api.http.get(f"/v1/requests/{request_id}/status").json()["progress"] == 0.1


def test_jobs_keep_the_form_that_every_live_worker_reads(api, slot_report):
    report = slot_report()

    def is_compact():
        request_id = accepted(api, request())
        return not api.ledger.redis.hexists(keys.item(f"{request_id}:0"), "spec")

    api.ledger.workers.beat("new", report)
    with_new_worker = is_compact()
    # An earlier version's heartbeat has no field for it.
    api.ledger.redis.hset(keys.slot("old"), mapping=report)
    api.ledger.redis.zadd(keys.SLOTS, {"old": api.ledger.now_ms()})
    with_old_worker = is_compact()
    api.ledger.workers.remove("old")

    assert [with_new_worker, with_old_worker, is_compact()] == [True, False, True]


def test_a_worker_with_an_engine_of_another_version_is_listed_with_the_engines_that_are_known(api, slot_report):
    api.ledger.workers.beat("gpu-0", slot_report(engines="exact,turbo"))

    ready, models, metrics = (api.http.get(path) for path in ("/ready", "/v1/models", "/metrics"))

    assert (ready.status_code, models.status_code, metrics.status_code) == (200, 200, 200)
    assert [slot["name"] for slot in ready.json()["slots"]] == ["gpu-0"]
    flux2 = next(model for model in models.json()["models"] if model["id"] == "flux2")
    assert flux2["engines"] == {"exact": 1, "ai-toolkit": 0, "fast": 0}
    assert 'flux2_slots{model="flux2",state="ready"} 1.0' in metrics.text


def test_an_unknown_path_and_a_wrong_method_are_problems_too(api):
    problem(api.http.get("/v1/nothing"), 404, "NOT_FOUND")
    problem(api.http.delete("/v1/inference"), 405, "METHOD_NOT_ALLOWED")


def test_the_openapi_document_names_every_endpoint_and_the_example(api):
    document = api.http.get("/openapi.json").json()

    assert {
        "/v1/inference",
        "/v1/requests/{request_id}/status",
        "/v1/requests/{request_id}/result",
        "/v1/requests/{request_id}/cancel",
        "/v1/requests",
        "/v1/models",
        "/health",
        "/ready",
    } <= set(document["paths"])
    assert document["components"]["schemas"]["InferenceRequest"]["examples"] == [json.loads(SEED_REQUEST)]
    for path in ("/v1/inference", "/v1/replays"):
        assert {"400", "413", "415", "422", "429", "503"} <= set(document["paths"][path]["post"]["responses"])
    assert api.http.get("/docs").status_code == 200


def test_a_training_config_becomes_the_jobs_that_reproduce_its_samples(api, adapter):
    config = """
config:
  name: my_lora
  process:
    - trigger_word: ohwx
      model: {arch: flux2, quantize: true}
      sample: {seed: 5, walk_seed: true, width: 64, height: 64, prompts: ["[trigger] a", "b --m 0.5", "c"]}
"""

    answer = api.http.post("/v1/replays", json={"config": config, "lora": "my_lora_job/my_lora.safetensors"})

    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert any("quantize" in warning for warning in body["warnings"])
    found = [specs(api, sample["request_id"])[sample["index"]] for sample in body["samples"]]
    assert [(spec.prompt, spec.seed, spec.adapters[0].multiplier) for spec in found] == [
        ("ohwx a", 5, 1.0),
        ("b", 6, 0.5),
        ("c", 7, 1.0),
    ]


def test_a_config_that_cannot_be_replayed_is_a_problem(api):
    body = problem(api.http.post("/v1/replays", json={"config": "config: {}"}), 400, "INVALID_CONFIG")

    assert "config.name" in body["detail"]


@pytest.mark.parametrize("body", [{"config": 1}, {}, {"config": "a: 1", "x": 1}, {"config": "a: 1", "lora": []}])
def test_each_invalid_field_of_a_replay_is_reported_once(api, body):
    found = problem(api.http.post("/v1/replays", json=body), 422, "VALIDATION_ERROR")

    assert len(found["errors"]) == 1
    assert "more" not in found["detail"]


@pytest.mark.parametrize(
    "config",
    [
        "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))]),
        "a: &a [*a]",
        "a: 2024-13-45",
        "[" * 5000,
        "config: {name: x, process: [{model: {arch: [flux2]}}]}",
        r'config: {name: x, process: [{model: {arch: "\ud800"}}]}',
        "config: {name: x, process: [{model: {arch: flux2}, sample: {prompts: 5}}]}",
        "config: {name: x, process: [{model: {arch: flux2}, sample: {prompts: [a], width: .inf}}]}",
    ],
)
def test_a_malicious_config_is_a_problem(api, config):
    problem(api.http.post("/v1/replays", json={"config": config}), 400, "INVALID_CONFIG")


def test_a_config_whose_samples_exceed_the_apis_limits_is_a_problem(api):
    config = "config: {name: x, process: [{model: {arch: flux2}, sample: {prompts: [a --s 999]}}]}"

    body = problem(api.http.post("/v1/replays", json={"config": config}), 422, "VALIDATION_ERROR")

    assert "sample_steps" in body["detail"]


def drawn(color):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(file, "PNG")
    return file.getvalue()


IMAGES = drawn("red"), drawn("blue")
IMAGE_CONFIG = """
config:
  name: x
  process:
    - model: {arch: flux2}
      sample:
        {width: 64, height: 64, samples: [
          {prompt: "a --ctrl_img /data/a.png"}, {prompt: b, ctrl_img_1: /data/a.png, ctrl_img_3: C:/b.png}]}
"""


def test_a_config_with_reference_images_is_answered_with_the_names_of_those_to_upload(api, adapter, redis_client):
    answer = api.http.post("/v1/replays", json={"config": IMAGE_CONFIG, "lora": "my_lora_job/my_lora.safetensors"})

    body = problem(answer, 422, "REFERENCE_IMAGES_NEEDED")
    assert body["images"] == ["/data/a.png", "C:/b.png"]
    assert [field["path"] for field in body["errors"]] == ["images"]
    assert "POST /v1/uploads" in body["detail"]
    assert redis_client.keys(f"{keys.PREFIX}job:*") == []


def test_other_problems_have_no_list_of_images(api):
    assert "images" not in problem(api.http.post("/v1/replays", json={"config": "config: {}"}), 400, "INVALID_CONFIG")


@pytest.mark.parametrize(
    "images",
    [{"": "upload:x"}, {"a": ""}, {"a": "x" * 2049}, {"a" * 4097: "upload:x"}, {"a": None}, []],
)
def test_images_of_a_replay_that_are_no_names_are_refused(api, images):
    found = problem(
        api.http.post("/v1/replays", json={"config": IMAGE_CONFIG, "images": images}), 422, "VALIDATION_ERROR"
    )

    assert [field["path"].startswith("images") for field in found["errors"]] == [True]


def test_an_image_that_the_config_does_not_have_is_refused(api):
    images = {"/data/a.png": "upload:a", "C:/b.png": "upload:b", "/data/c.png": "upload:c"}

    found = problem(
        api.http.post("/v1/replays", json={"config": IMAGE_CONFIG, "images": images}), 400, "INVALID_REQUEST"
    )

    assert "no sample of the config has the reference image '/data/c.png'" in found["detail"]


def test_the_items_of_a_replay_have_the_images_of_their_samples(api, adapter):
    red, blue = (
        api.http.post("/v1/uploads", content=data, headers={"content-type": "image/png"}).json() for data in IMAGES
    )
    images = {"/data/a.png": red["path"], "C:/b.png": blue["path"]}

    answer = api.http.post(
        "/v1/replays", json={"config": IMAGE_CONFIG, "lora": "my_lora_job/my_lora.safetensors", "images": images}
    )

    assert answer.status_code == 202, answer.text
    found = [specs(api, sample["request_id"])[sample["index"]] for sample in answer.json()["samples"]]
    assert [[(ref.slot, ref.sha256) for ref in spec.references] for spec in found] == [
        [(1, red["sha256"])],
        [(1, red["sha256"]), (3, blue["sha256"])],
    ]
    assert [spec.prompt for spec in found] == ["a", "b"]


def test_a_repeated_replay_returns_its_jobs_even_if_an_image_is_gone(api, adapter):
    red = api.http.post("/v1/uploads", content=IMAGES[0], headers={"content-type": "image/png"}).json()
    body = {
        "config": IMAGE_CONFIG,
        "lora": "my_lora_job/my_lora.safetensors",
        "images": {"/data/a.png": red["path"], "C:/b.png": red["path"]},
    }
    first = api.http.post("/v1/replays", json=body, headers={"Idempotency-Key": "once"})
    assert api.store.delete_prefix("references") == 1

    again = api.http.post("/v1/replays", json=body, headers={"Idempotency-Key": "once"})

    assert (first.status_code, again.status_code) == (202, 202), again.text
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["samples"] == first.json()["samples"]


def test_an_image_of_a_replay_that_was_never_uploaded_is_refused(api, adapter, redis_client):
    images = {"/data/a.png": f"upload:{'0' * 64}", "C:/b.png": f"upload:{'1' * 64}"}

    answer = api.http.post(
        "/v1/replays", json={"config": IMAGE_CONFIG, "lora": "my_lora_job/my_lora.safetensors", "images": images}
    )

    found = problem(answer, 422, "invalid_reference")
    assert found["detail"].startswith("/data/a.png: no image was uploaded as upload:000")
    assert [field["path"] for field in found["errors"]] == ["images"]
    assert redis_client.keys(f"{keys.PREFIX}job:*") == []


def test_a_replay_with_too_many_images_names_the_first_one_beyond_the_limit(api, serve_api, adapter):
    references = api.settings.references.model_copy(update={"max_images": 1})
    images = {"/data/a.png": f"upload:{'0' * 64}", "C:/b.png": f"upload:{'1' * 64}"}
    body = {"config": IMAGE_CONFIG, "lora": "my_lora_job/my_lora.safetensors", "images": images}

    with serve_api(api.settings.model_copy(update={"references": references})) as small:
        found = problem(small.http.post("/v1/replays", json=body), 400, "INVALID_REQUEST")

    assert found["detail"].startswith("C:/b.png: the call has more than 1 different reference images")
    assert [field["path"] for field in found["errors"]] == ["images"]


def test_a_link_in_a_config_that_cannot_be_used_is_named(api, adapter):
    sample = {"samples": [{"prompt": "a --m 0.5"}, {"prompt": "b", "ctrl_img_2": "https://127.0.0.1/a.png?sig=s3cret"}]}
    process = {"model": {"arch": "flux2"}, "sample": {"width": 64, "height": 64, **sample}}
    config = json.dumps({"config": {"name": "x", "process": [process]}})

    answer = api.http.post("/v1/replays", json={"config": config, "lora": "my_lora_job/my_lora.safetensors"})

    found = problem(answer, 422, "invalid_reference")
    assert found["detail"].startswith("https://127.0.0.1/a.png: 127.0.0.1 has an address that is not public")
    assert "s3cret" not in answer.text
    assert [field["path"] for field in found["errors"]] == ["config"]


def test_a_replay_without_images_has_the_same_identity_as_before_there_were_any():
    # The sha256 that the version without `images` computed: a repeat across an upgrade returns its jobs.
    assert hash_body(ReplayRequest(config="a: 1", lora=None)) == (
        "21351debfb1526e263f8ffc61dfed1446b56b819418d465e231490911e555678"
    )


def test_a_config_whose_trigger_word_makes_its_prompts_too_large_is_a_problem(api):
    sample = {"prompts": ["[trigger]" * 9] * 8}
    process = {"model": {"arch": "flux2"}, "trigger_word": "x" * 1_000, "sample": sample}
    config = json.dumps({"config": {"name": "x", "process": [process]}})

    body = problem(api.http.post("/v1/replays", json={"config": config}), 400, "INVALID_REQUEST")

    assert "72000 bytes" in body["detail"]
    assert "at most 65536" in body["detail"]
    assert [field["path"] for field in body["errors"]] == ["config"]


def replay(api, *prompts, **headers):
    sample = {"width": 64, "height": 64, "prompts": prompts}
    config = {"config": {"name": "x", "process": [{"model": {"arch": "flux2"}, "sample": sample}]}}
    body = {"config": json.dumps(config), "lora": "my_lora_job/my_lora.safetensors"}
    return api.http.post("/v1/replays", json=body, headers=headers)


def test_a_replay_of_many_strengths_reads_workers_and_adapter_once(api, adapter, monkeypatch):
    reads = []
    for owner, name in ((validate, "open_adapter"), (SlotKinds, "count"), (WorkerRegistry, "base_model")):
        read = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, name=name, read=read: reads.append(name) or read(*args))
    strengths = [index / 40 for index in range(40)]

    answer = replay(api, *(f"a --m {strength}" for strength in strengths)).json()

    assert sorted(reads) == ["base_model", "count", "open_adapter"]
    results = [api.http.get(f"/v1/requests/{job['request_id']}/status").json() for job in answer["requests"]]
    assert [job["status"] for job in results] == ["in_queue"] * 40
    claims = [api.ledger.claim_next(["flux2"], slot="s", boot="b", warm="base") for _ in strengths]
    assert sorted(claim.spec.adapters[0].multiplier for claim in claims) == strengths


def test_polls_are_answered_while_more_configs_are_read_than_there_are_threads(api, adapter, monkeypatch, wait_until):
    request_id = accepted(api, request())
    reading, release, all_read = [], threading.Event(), []

    def read_slowly(*args, **kwargs):
        reading.append(len(reading) - len(all_read))
        assert release.wait(30)
        all_read.append(None)
        return plan_replay(*args, **kwargs)

    monkeypatch.setattr("api.routes.replays.plan_replay", read_slowly)
    # FastAPI has 40 threads.
    with ThreadPoolExecutor(60) as callers:
        replays = [callers.submit(replay, api, "a") for _ in range(60)]
        wait_until(lambda: reading, what="the first config's turn")
        try:
            polls = [api.http.get(f"/v1/requests/{request_id}/status").status_code for _ in range(20)]
        finally:
            release.set()
        statuses = [call.result().status_code for call in replays]

    assert polls == [200] * 20
    # `api` has a queue of 50.
    assert sorted(set(statuses)) == [202, 429]
    # One config at a time.
    assert reading == [0] * 60


def test_a_replay_of_more_samples_than_a_request_may_have_is_refused(api, adapter):
    body = problem(replay(api, *["a"] * 600, *["b --m 0.5"] * 401), 400, "INVALID_REQUEST")

    assert body["detail"] == "1001 samples; use at most 1000 in one config"


def test_a_replay_with_one_job_that_cannot_be_served_stores_nothing(api, adapter, redis_client):
    problem(replay(api, "a", "b [IM[IMG]G] --m 0.5"), 400, "INVALID_REQUEST")

    assert redis_client.keys(f"{keys.PREFIX}job:*") == []


def test_a_replay_that_does_not_fit_into_the_queue_stores_nothing(api, adapter, redis_client):
    problem(replay(api, *["a"] * 30, *["b --m 0.5"] * 30), 400, "JOB_TOO_LARGE")
    assert redis_client.keys(f"{keys.PREFIX}job:*") == []

    accepted(api, request())
    found = problem(replay(api, *["a"] * 25, *["b --m 0.5"] * 25), 429, "queue_full")
    assert found["detail"].startswith("50 items were asked for, 1 item is queued")
    assert len(redis_client.keys(f"{keys.PREFIX}job:*")) == 1


def test_an_empty_prompt_is_accepted_with_a_warning(api):
    answer = post(api, request({"prompt": "a cat"}, {"prompt": " \n"}, {"prompt": ""}))

    assert answer.status_code == 202
    assert [text for text in answer.json()["warnings"] if "empty" in text] == [
        "prompts[1].prompt is empty: the image shows what the model and its adapters draw without a prompt"
    ]


def test_repeating_a_replay_with_its_idempotency_key_returns_the_same_jobs(api, adapter):
    first = replay(api, "a", "b --m 0.5", **{"Idempotency-Key": "r1"})
    adapter.unlink()
    again = replay(api, "a", "b --m 0.5", **{"Idempotency-Key": "r1"})

    assert (again.status_code, again.json()) == (202, first.json())
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert api.ledger.queue_length("flux2") == 2


def test_an_idempotency_key_with_another_config_is_refused(api, adapter):
    replay(api, "a", "b --m 0.5", **{"Idempotency-Key": "r2"})

    problem(replay(api, "a", "b --m 0.5", "c --m 0.7", **{"Idempotency-Key": "r2"}), 422, "IDEMPOTENCY_KEY_REUSED")

    assert api.ledger.queue_length("flux2") == 2


def parts(services, key):
    """Two requests of 20 images each, prepared together."""
    body = InferenceRequest.model_validate(request(*[{"prompt": "a"}] * 20))
    keys_of_parts = [key and f"{key}#{number}" for number in range(2)]
    return [prepare_job(services, body, idempotency_key=k, body_hash="h", caller=ANYBODY) for k in keys_of_parts]


@pytest.fixture
def crowded(api, item):
    """The API of a ledger whose cap is 50, with 20 items queued: there is room for one of two parts."""
    api.ledger.accept("before", [item()] * 20, record={})
    return api.services


@pytest.mark.parametrize("key", ["", "k"])
def test_no_job_of_a_replay_is_stored_if_the_queue_has_no_room_for_all(api, crowded, key):
    first, second = parts(crowded, key)

    with pytest.raises(QueueFull, match="20 items are queued and the cap is 50"):
        store_jobs(crowded, [first, second], BackgroundTasks(), caller=ANYBODY)

    assert api.ledger.job(first.job_id) is None
    assert api.ledger.job(second.job_id) is None
    assert api.ledger.queue_length("flux2") == 20


def test_a_replay_that_a_full_queue_refused_is_stored_as_a_whole_when_repeated(api, crowded):
    with pytest.raises(QueueFull):
        store_jobs(crowded, parts(crowded, "k"), BackgroundTasks(), caller=ANYBODY)
    while claimed := claim(api):
        api.ledger.commit(claimed, None)

    background = BackgroundTasks()
    stored = store_jobs(crowded, parts(crowded, "k"), background, caller=ANYBODY)
    again = store_jobs(crowded, parts(crowded, "k"), background, caller=ANYBODY)

    assert [accepted.is_repeat for accepted in stored] == [False, False]
    assert [(accepted.job_id, accepted.is_repeat) for accepted in again] == [
        (accepted.job_id, True) for accepted in stored
    ]
    assert api.ledger.queue_length("flux2") == 40
    # One round of wake-ups for all jobs of a pool.
    assert [task.kwargs for task in background.tasks] == [{"count": 40}]


def test_a_replay_with_one_stored_job_gets_the_other_when_repeated(api):
    first, second = parts(api.services, "k")
    [stored] = store_jobs(api.services, [first], BackgroundTasks(), caller=ANYBODY)

    again = store_jobs(api.services, [first, second], BackgroundTasks(), caller=ANYBODY)

    assert [accepted.job_id for accepted in again] == [stored.job_id, second.job_id]
    assert api.ledger.queue_length("flux2") == 40


def test_a_job_for_an_engine_is_refused_while_live_workers_offer_only_others(api, slot_report):
    body = request(engine="ai-toolkit")

    without = post(api, body).json()
    api.ledger.workers.beat("gpu-0", slot_report())
    refused = problem(post(api, body), 422, "NO_SUITABLE_WORKER")
    api.ledger.workers.beat("gpu-1", slot_report(engines="exact,ai-toolkit"))
    with_one = post(api, body).json()
    (model,) = [model for model in api.http.get("/v1/models").json()["models"] if model["id"] == "flux2"]

    assert without["warnings"] == ["no live worker offers the engine 'ai-toolkit' for flux2; the job waits for one"]
    assert refused["errors"][0]["path"] == "engine"
    assert "they offer the engine 'exact'" in refused["detail"]
    assert with_one["warnings"] == []
    assert model["engines"] == {"exact": 2, "ai-toolkit": 1, "fast": 0}
    assert claim(api) is None  # of the engine `exact`
    assert api.http.get(f"/v1/requests/{with_one['request_id']}/status").json()["queue_position"] == 1


@pytest.fixture
def qfloat8(slot_report):
    """The heartbeat of a worker that cannot merge adapters."""
    return slot_report(precision="qfloat8", features="")


@pytest.fixture
def bf16(slot_report):
    """The heartbeat of a worker that can."""
    return slot_report(features="merged")


MERGED = {"adapter_mode": "merged", "loras": [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 1.0}]}


def test_merged_adapters_are_refused_while_no_live_worker_can_merge(api, adapter, qfloat8):
    api.ledger.workers.beat("gpu-0", qfloat8)

    refused = problem(post(api, request(**MERGED)), 422, "NO_SUITABLE_WORKER")

    assert refused["errors"][0]["path"] == "adapter_mode"
    assert refused["detail"].startswith(
        "no live worker of flux2 offers the engine 'exact' with adapter_mode 'merged'; they offer the engine 'exact':"
    )
    assert post(api, request(loras=MERGED["loras"])).json()["warnings"] == [
        "adapters were checked for their form only: no live worker has loaded flux2"
    ]
    # Without adapters the mode has no meaning.
    assert post(api, request(adapter_mode="merged")).json()["warnings"] == []


def test_in_a_mixed_fleet_only_a_worker_that_can_merge_claims_merged_adapters(api, adapter, qfloat8, bf16):
    for name, report in (("gpu-0", qfloat8), ("gpu-1", bf16)):
        api.ledger.workers.beat(name, report)
    by_name = {slot.name: slot for slot in api.ledger.workers.live_slots()}

    job = accepted(api, request(**MERGED))
    plain = accepted(api, request())

    def claimed_by(name):
        claims = iter(lambda: api.ledger.claim_next(by_name[name].pools, slot=name, boot="b", warm="base"), None)
        return [claimed.job_id for claimed in claims]

    assert claimed_by("gpu-0") == [plain]
    assert claimed_by("gpu-1") == [job]


def test_merged_adapters_wait_while_live_workers_have_sent_no_heartbeat_since_a_stall(api, adapter, qfloat8, bf16):
    api.ledger.workers.beat("gpu-0", qfloat8)
    api.ledger.workers.beat("gpu-1", bf16)
    # As after a stall of 20 s: both reports have expired, and gpu-0 is the first to send another.
    for slot in ("gpu-0", "gpu-1"):
        api.ledger.redis.zadd(keys.SLOTS, {slot: api.ledger.now_ms() - 20_000})
        api.ledger.redis.delete(keys.slot(slot))
    api.ledger.workers.beat("gpu-0", qfloat8)

    during = post(api, request(**MERGED))
    api.ledger.redis.delete(keys.SLOTS_MISSING)
    afterwards = post(api, request(**MERGED))

    assert [slot.name for slot in api.ledger.workers.live_slots()] == ["gpu-0"]
    assert during.status_code == 202
    assert "the job waits for one" in str(during.json()["warnings"])
    assert afterwards.status_code == 422


def test_merged_adapters_wait_while_a_worker_of_an_earlier_version_may_be_replaced(api, adapter, bf16):
    expected = "no live worker offers the engine 'exact' with adapter_mode 'merged' for flux2; the job waits for one"

    without = post(api, request(**MERGED)).json()
    api.ledger.workers.beat("gpu-0", {name: value for name, value in bf16.items() if name != "features"})
    with_one = post(api, request(**MERGED)).json()

    assert expected in without["warnings"]
    assert expected in with_one["warnings"]
    [slot] = api.ledger.workers.live_slots()
    assert slot.pools == ("flux2",)


def test_the_engine_and_adapter_mode_of_a_request_reach_the_item(api):
    (spec,) = specs(api, accepted(api, request(adapter_mode="live")))

    assert (spec.engine, spec.adapter_mode) == ("exact", "live")
    problem(post(api, request(engine="comfy")), 422, "VALIDATION_ERROR")


def test_metrics_report_the_queue_the_workers_and_their_corrupted_parameters(api, slot_report):
    accepted(api, request({"prompt": "a"}, {"prompt": "b"}))
    api.ledger.workers.beat("gpu-0", slot_report(state="busy"))
    api.ledger.workers.beat("gpu-1", slot_report(state="busy", base_drift="7"))

    answer = api.http.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain")
    assert {
        'flux2_items_queued{engine="exact",model="flux2"} 2.0',
        'flux2_slots{model="flux2",state="busy"} 2.0',
        'flux2_base_drift{slot="gpu-0"} 0.0',
        'flux2_base_drift{slot="gpu-1"} 7.0',
    } <= set(answer.text.splitlines())


def test_an_image_that_waits_for_a_device_with_more_memory_counts_as_queued(api, slot_report):
    job = accepted(api, request({"prompt": "a"}, {"prompt": "b"}))
    claimed = claim(api)
    larger = slot_report(features="merged,large", memory_bytes=str(80 * 2**30))
    api.ledger.workers.beat("gpu-0", larger)
    full = ItemError(code="out_of_memory", message="full", retryable=False)
    api.ledger.release_too_large(claimed, memory_bytes=24 * 2**30, error=full, too_large=full)

    status = api.http.get(f"/v1/requests/{job}/status").json()

    assert (status["status"], status["queue_position"], status["error"]) == ("in_progress", 0, None)
    assert [image["status"] for image in status["items"]] == ["in_queue", "in_queue"]
    assert 'flux2_items_queued{engine="exact",model="flux2"} 2.0' in api.http.get("/metrics").text.splitlines()
    api.http.post(f"/v1/requests/{job}/cancel")
    assert api.http.get(f"/v1/requests/{job}/status").json()["status"] == "canceled"
    assert 'flux2_items_queued{engine="exact",model="flux2"} 0.0' in api.http.get("/metrics").text.splitlines()


def test_an_adapter_can_be_inspected_before_it_is_used(api, adapter, slot_report):
    path = {"path": "my_lora_job/my_lora.safetensors"}

    alone = api.http.get("/v1/adapters", params=path).json()
    api.ledger.workers.beat("gpu-0", slot_report())
    api.ledger.workers.publish_base_model("flux2", revision="r", layers={"img_in": (64, 128)})
    with_base = api.http.get("/v1/adapters", params=path).json()

    assert (alone["kind"], alone["ranks"], alone["matched"], alone["refused"]) == ("lora", [4], None, None)
    assert with_base["matched"] == 0
    assert "matches no layer" in with_base["refused"]
    problem(api.http.get("/v1/adapters", params={"path": "../x.safetensors"}), 422, "INVALID_LORA")


def test_the_adapter_files_under_the_root_are_listed_page_by_page(api, adapter_root, tmp_path):
    for path in ("a/10.safetensors", "a/9.safetensors", "a.safetensors", "b/c/d.safetensors", ".hidden/x.safetensors"):
        (adapter_root / path).parent.mkdir(parents=True, exist_ok=True)
        (adapter_root / path).write_bytes(b"12345")
    (adapter_root / "notes.txt").touch()
    (tmp_path / "outside.safetensors").touch()
    (adapter_root / "leak.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (adapter_root / "loop").symlink_to(adapter_root)

    pages = [api.http.get("/v1/adapters", params={"limit": 3}).json()]
    while pages[-1]["has_more"]:
        pages.append(api.http.get("/v1/adapters", params={"limit": 3, "cursor": pages[-1]["next_cursor"]}).json())

    found = [file for page in pages for file in page["data"]]
    assert [file["path"] for file in found] == [
        "a/10.safetensors",
        "a/9.safetensors",
        "a.safetensors",
        "b/c/d.safetensors",
    ]
    assert {file["size_bytes"] for file in found} == {5}
    assert len(pages) == 2


def test_a_list_of_adapter_files_looks_at_a_bounded_number_of_entries(adapter_root):
    for number in range(10):
        (adapter_root / f"{number}.txt").touch()
    (adapter_root / "last.safetensors").touch()

    first = list_adapter_files(adapter_root, limit=5, max_entries=6)
    second = list_adapter_files(adapter_root, after=first.next_after, limit=5, max_entries=6)

    assert (first.files, first.next_after) == ([], "5.txt")
    assert [file.path for file in second.files] == ["last.safetensors"]
    assert second.next_after is None


def test_linked_folders_are_served_and_listed_if_the_operator_allows_it(
    serve_api, api, adapter, adapter_root, tmp_path
):
    output = tmp_path / "output"
    output.mkdir()
    shutil.copy(adapter_root / "my_lora_job" / "my_lora.safetensors", output / "linked.safetensors")
    (adapter_root / "output").symlink_to(output)
    body = request(loras=[{"path": "output/linked.safetensors"}])

    refused = problem(post(api, body), 422, "INVALID_LORA")
    settings = api.settings.adapters.model_copy(update={"allow_symlinks": True})
    with serve_api(api.settings.model_copy(update={"adapters": settings})) as allowing:
        accepted_there = post(allowing, body)
        found = allowing.http.get("/v1/adapters").json()["data"]
        described = allowing.http.get("/v1/adapters", params={"path": "output/linked.safetensors"}).json()

    assert "'output' is a link that leaves it" in refused["detail"]
    assert str(tmp_path) not in refused["detail"]
    assert accepted_there.status_code == 202, accepted_there.text
    assert [file["path"] for file in found] == ["my_lora_job/my_lora.safetensors", "output/linked.safetensors"]
    assert described["refused"] is None


def test_a_missing_adapter_is_answered_with_the_nearest_name(api, adapter):
    body = problem(post(api, request(loras=[{"path": "my_lora.safetensors"}])), 400, "LORA_NOT_FOUND")

    assert "did you mean 'my_lora_job/my_lora.safetensors'?" in body["detail"]


def test_flags_in_a_prompt_give_a_warning_and_stay_in_it(api):
    answer = post(api, request({"prompt": "a fox --width 512 --seed 7"}, {"prompt": "b --m 0.5"})).json()

    assert specs(api, answer["request_id"])[0].prompt == "a fox --width 512 --seed 7"
    assert [text for text in answer["warnings"] if "flags" in text] == [
        "prompts[0].prompt is rendered with '--width 512 --seed 7' as words: the trainer's sample prompts may end with "
        "flags, but a request has fields; remove them from the prompt, and set width, seed"
    ]


def test_the_flags_of_a_training_configs_prompts_give_no_warning(api, adapter):
    config = """
config:
  name: my_lora
  process:
    - model: {arch: flux2}
      sample: {format: png, width: 64, height: 64, prompts: ["a --seed 7 --w 128", "b --ar 3"]}
"""

    answer = api.http.post("/v1/replays", json={"config": config, "lora": "my_lora_job/my_lora.safetensors"}).json()

    assert not any("flags" in warning for job in [answer, *answer["requests"]] for warning in job["warnings"])
    found = [specs(api, sample["request_id"])[sample["index"]] for sample in answer["samples"]]
    assert [(spec.prompt, spec.width) for spec in found] == [("a", 128), ("b", 64)]


def test_the_result_says_that_a_prompt_was_cut(api, store_image):
    request_id = accepted(api, request())
    item = claim(api)
    report = {"tokens": TokenReport(prompt=600, neg=None, limit=512), "warnings": ("its end has no effect",)}
    api.ledger.commit(item, store_image(api, item, b"picture").model_copy(update=report))

    (image,) = api.http.get(f"/v1/requests/{request_id}/result").json()["outputs"]["images"]

    assert image["tokens"] == {"prompt": 600, "neg": None, "limit": 512}
    assert image["warnings"] == ["its end has no effect"]


def test_a_result_that_an_earlier_version_stored_has_no_count_of_tokens(api, finish):
    request_id = accepted(api, request())
    finish(api, claim(api))
    [item, *_] = api.ledger.job(request_id).items
    old = item.result.model_dump(mode="json", exclude={"tokens", "warnings"})
    api.ledger.redis.hset(keys.item(f"{request_id}:0"), "result", json.dumps(old))

    (image,) = api.http.get(f"/v1/requests/{request_id}/result").json()["outputs"]["images"]

    assert (image["tokens"], image["warnings"]) == (None, [])


def test_a_jobs_own_url_answers_as_its_status_does(api):
    path = f"/v1/requests/{accepted(api, request())}"

    assert api.http.get(path).json() == api.http.get(f"{path}/status").json()
    problem(api.http.get("/v1/requests/unknown"), 404, "REQUEST_NOT_FOUND")


def test_the_models_page_states_the_limits_of_a_request(api):
    limits = api.http.get("/v1/models").json()["limits"]

    # The queue of `api` holds 50 items: a client that splits at more would be refused.
    assert (limits.pop("max_prompts"), limits.pop("max_body_bytes")) == (50, 64 * 1024)
    assert (limits.pop("max_reference_images"), limits.pop("max_reference_bytes")) == (100, 32 * 1024**2)
    assert (limits.pop("max_sweep_images"), limits.pop("max_sweep_jobs")) == (50, 500)
    assert limits == {"max_values": 50_000, "max_prompt_characters": 10_000, "max_prompt_tokens": 512}


def test_the_openapi_document_states_the_installed_version(api):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    assert api.http.get("/openapi.json").json()["info"]["version"] == project["version"]
