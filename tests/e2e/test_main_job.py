"""From an HTTP request to pictures in S3, with real processes throughout."""

import hashlib
import io
import os
import signal
import time

import pytest
import requests
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file

from shared.demo_model import DEMO_ADAPTER
from shared.errors import ApiError
from shared.image_parameters import read_parameters
from shared.ledger import keys
from worker.model.demo_model import STYLES, write_tiny_adapter
from worker.rendering.sigmas import sigmas

JOB_S = 120.0
# An item of some seconds: long enough to be seen running and to be interrupted.
LONG = {"prompt": "long", "width": 128, "height": 128, "sample_steps": 120}


def request(*prompts, multiplier=1.0, loras=None, **fields):
    """The demonstration adapter at a size that a CPU renders in about a second."""
    small = {"width": 128, "height": 96, "sample_steps": 4, "seed": 7}
    return {
        "model": "flux2",
        "trigger_word": "sks",
        "loras": [{"path": DEMO_ADAPTER, "network_multiplier": multiplier}] if loras is None else loras,
        "prompts": [{**small, **prompt} for prompt in prompts or [{"prompt": "[trigger] a photo of a person"}]],
        **fields,
    }


def render(client, body):
    """Submit, wait and return the images with their bytes."""
    job = client.submit(body)
    status = client.wait(job.request_id, timeout_s=JOB_S)
    assert status.status == "succeeded", status
    return [(image.model_dump(mode="json"), image.bytes()) for image in client.result(job.request_id).images]


def pixels(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def difference(one, other):
    """Mean absolute difference of two images, 0 to 255."""
    histogram = ImageChops.difference(pixels(one), pixels(other)).histogram()
    return sum((index % 256) * count for index, count in enumerate(histogram)) / sum(histogram)


def test_the_reference_apis_python_client_works_unchanged(stack):
    # The flow of the example on ai-toolkit-inference's HTTP API page: post, take request_id, poll, fetch, read.
    base_url = stack.url
    started = requests.post(f"{base_url}/v1/inference", json=request(), timeout=30)
    started.raise_for_status()
    request_id = started.json()["request_id"]

    deadline = time.monotonic() + JOB_S
    while True:
        polled = requests.get(f"{base_url}/v1/requests/{request_id}/status", timeout=30)
        polled.raise_for_status()
        status = polled.json()["status"]
        if status in ("succeeded", "failed", "canceled"):
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    result = requests.get(f"{base_url}/v1/requests/{request_id}/result", timeout=30)
    result.raise_for_status()

    assert status == "succeeded"
    [image] = result.json()["outputs"]["images"]
    assert (image["format"], image["width"], image["height"], image["seed"]) == ("png", 128, 96, 7)
    assert requests.get(image["url"], timeout=30).content.startswith(b"\x89PNG")


def test_an_image_is_what_its_result_says_and_carries_its_parameters(client):
    [(image, data)] = render(client, request())

    assert hashlib.sha256(data).hexdigest() == image["sha256"]
    assert len(data) == image["size_bytes"]
    assert pixels(data).size == (128, 96)
    [report] = image["adapters"]
    assert report["path"] == DEMO_ADAPTER
    assert 0 < report["layers_touched"] <= report["layers_total"]
    assert report["ranks"]
    assert set(image["timings"]) == {"adapter", "encode_prompt", "denoise", "decode", "encode_image", "upload"}
    inside = read_parameters(data)
    assert (inside["prompt"], inside["seed"], inside["sample_steps"]) == ("sks a photo of a person", 7, 4)
    assert inside["adapters"][0]["sha256"] == report["sha256"]
    assert inside["pipeline"]["base_revision"] == image["pipeline"]["base_revision"]


def test_the_adapter_and_its_multiplier_change_the_picture_and_zero_is_the_base(client):
    [(_, base)] = render(client, request(loras=[]))
    [(_, zero)] = render(client, request(multiplier=0.0))
    [(_, half)] = render(client, request(multiplier=0.5))
    [(_, full)] = render(client, request(multiplier=1.0))

    assert pixels(zero).tobytes() == pixels(base).tobytes()
    assert difference(half, base) > 0.2
    assert difference(full, base) > difference(half, base)


def test_the_same_request_gives_the_same_pixels_whatever_ran_between(client):
    [(_, first)] = render(client, request())
    render(client, request({"prompt": "something else", "seed": 8}, multiplier=-1.0))
    [(_, second)] = render(client, request())

    assert pixels(first).tobytes() == pixels(second).tobytes()


def test_a_warm_adapter_is_kept_and_another_multiplier_is_a_swap(client):
    changes = set()
    for _ in range(3):
        images = render(client, request({"prompt": "a"}, {"prompt": "b"}, multiplier=0.75))
        changes |= {image["pipeline"]["change"] for image, _ in images}

    assert "none" in changes
    assert changes & {"swapped", "merged"}


def test_a_jobs_items_spread_over_the_workers(stack, client):
    job = client.submit(request(*[{"prompt": f"cat {n}", "seed": n} for n in range(8)]))
    client.wait(job.request_id, timeout_s=JOB_S)

    view = stack.ledger().job(job.request_id)

    assert {item.slot for item in view.items} == {"worker-0", "worker-1"}
    assert {item.attempt for item in view.items} == {1}


def test_the_trainers_own_noise_levels_give_the_picture_of_that_many_steps(client):
    levels = sigmas(3, 48)[:-1]  # 128x96 pixels have 48 tokens
    prompt = {"prompt": "a cat", "width": 128, "height": 96, "seed": 7}

    body = {**request(), "prompts": [{**prompt, "sample_steps": 3}, {**prompt, "sigmas": levels}]}
    (by_steps, one), (by_levels, other) = render(client, body)

    assert pixels(one).tobytes() == pixels(other).tobytes()
    assert (by_steps["sample_steps"], by_steps["sigmas"]) == (3, None)
    assert (by_levels["sample_steps"], by_levels["sigmas"]) == (3, levels)
    inside = read_parameters(other)
    assert inside["sigmas"] == levels
    assert "sample_steps" not in inside
    assert "Steps: 3" in Image.open(io.BytesIO(other)).info["parameters"]


@pytest.mark.parametrize(("fmt", "magic"), [("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_other_formats_can_be_requested(client, fmt, magic):
    [(image, data)] = render(client, request(output_format=fmt))

    assert image["format"] == fmt
    assert data.startswith(magic)
    assert read_parameters(data)["seed"] == 7


def test_an_adapter_that_does_not_fit_is_refused_at_submission(stack, client):
    tensors = load_file(stack.adapter_root / DEMO_ADAPTER)
    key = "diffusion_model.single_blocks.0.linear1.lora_A.weight"
    save_file({**tensors, key: tensors[key][:, :-1].contiguous()}, stack.adapter_root / "narrow.safetensors")

    with pytest.raises(ApiError, match=r"LORA_MISMATCH: single_blocks\.0\.linear1: expected"):
        client.submit(request(loras=[{"path": "narrow.safetensors"}]))


def test_an_adapter_file_replaced_after_submission_fails_the_item(stack, client):
    path = stack.adapter_root / "replaced.safetensors"
    write_tiny_adapter(path, STYLES[0])
    blockers = [client.submit(request(LONG)) for _ in range(2)]
    job = client.submit(request(loras=[{"path": path.name}]))

    path.unlink()
    write_tiny_adapter(path, STYLES[1])
    for blocker in blockers:
        client.cancel(blocker.request_id)

    status = client.wait(job.request_id, timeout_s=JOB_S)
    assert status.status == "failed"
    assert status.items[0].error.code == "INVALID_LORA"
    assert client.result(job.request_id).outputs is None


def test_a_running_job_stops_soon_after_it_is_canceled(client, wait_running):
    job = client.submit(request(LONG))
    wait_running(job)

    client.cancel(job.request_id)
    asked = time.monotonic()
    status = client.wait(job.request_id, timeout_s=JOB_S, poll_s=0.02)

    assert status.status == "canceled"
    # Half a second until a lease renewal brings the cancellation, one step, and room for a busy machine.
    assert time.monotonic() - asked < 5


def test_a_killed_workers_item_is_finished_by_another(stack, client, wait_running, wait_for_takeover):
    job = client.submit(request(LONG))
    slot = wait_running(job)

    os.kill(stack.pid(slot), signal.SIGKILL)
    wait_for_takeover(job)
    status = client.wait(job.request_id, timeout_s=JOB_S)

    assert status.status == "succeeded"
    [item] = stack.ledger().job(job.request_id).items
    assert item.attempt == 2
    assert item.fence == 2


def test_a_drained_worker_hands_its_item_over_without_costing_an_attempt(
    stack, client, wait_running, wait_for_takeover
):
    job = client.submit(request(LONG))
    slot = wait_running(job)

    os.kill(stack.pid(slot), signal.SIGTERM)
    wait_for_takeover(job)
    status = client.wait(job.request_id, timeout_s=JOB_S)

    assert status.status == "succeeded"
    [item] = stack.ledger().job(job.request_id).items
    assert (item.attempt, item.fence) == (1, 2)
    assert item.slot != slot


def test_a_lost_wake_up_is_sent_again(stack, client, wait_until):
    # Both workers are busy, so the job's wake-up is still in the queue when the test deletes it.
    blockers = [client.submit(request(LONG)) for _ in range(2)]
    redis, queue = stack.ledger().redis, keys.wake_list("flux2")
    wait_until(lambda: len(redis.zrange(keys.LEASES, 0, -1)) == 2, 30, what="two running items")
    job = client.submit(request())
    wait_until(lambda: redis.delete(queue), 10, what="the wake-up to delete")
    assert client.status(job.request_id).status == "in_queue"

    for blocker in blockers:
        client.cancel(blocker.request_id)
    assert client.wait(job.request_id, timeout_s=JOB_S).status == "succeeded"


def test_the_models_page_counts_the_live_workers(stack, client):
    models = {model["id"]: model for model in requests.get(f"{stack.url}/v1/models", timeout=10).json()["models"]}

    assert models["flux2"]["slots"] == 2
    assert models["flux2"]["base_revision"]
    assert models["flux2_klein_4b"]["slots"] == 0
