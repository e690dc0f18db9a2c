"""Adapters that are kept elsewhere, with real processes: the same pictures, one download, the right bytes."""

import hashlib
import io
import os
import signal
import subprocess
import sys

import pytest
import requests
from PIL import Image
from safetensors.torch import load_file, save

from shared.demo_model import DEMO_ADAPTER
from shared.settings import Settings
from shared.storage.s3_client import make_client
from worker.consumer.background import STEP_TO_PREPARE

JOB_S = 120.0


@pytest.fixture
def make_lora(stack):
    """The demonstration adapter as another file: the same update, and other bytes for each name."""

    def make(name):
        return save(load_file(stack.demo_adapter), metadata={"name": name})

    return make


@pytest.fixture
def put_object(stack, monkeypatch):
    """Put an object into the bucket of the processes; returns its address."""
    for name, value in stack.servers.s3.environment().items():
        monkeypatch.setenv(name, value)
    s3 = Settings().s3
    client = make_client(s3, endpoint_url=s3.endpoint_url, credentials={})

    def put(key, data):
        client.put_object(Bucket=s3.bucket, Key=key, Body=data)
        return f"s3://{s3.bucket}/{key}"

    return put


def request(path, *, count=1, **fields):
    small = {"prompt": "[trigger] a photo of a person", "width": 128, "height": 96, "sample_steps": 4, **fields}
    return {
        "model": "flux2",
        "trigger_word": "sks",
        "loras": [{"path": path}] if path else [],
        "prompts": [{**small, "seed": 7 + number} for number in range(count)],
    }


def finished(client, job):
    """Wait for a job's end; return its images with their bytes."""
    status = client.wait(job.request_id, timeout_s=JOB_S)
    assert status.status == "succeeded", status
    return [(image.model_dump(mode="json"), image.bytes()) for image in client.result(job.request_id).images]


def render(client, path, **fields):
    return finished(client, client.submit(request(path, **fields)))


def pixels(data):
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def block_workers(stack, client, wait_until):
    """Occupy both workers with items whose time to prefetch the next item is over; return their jobs."""
    jobs = [client.submit(request("", width=128, height=128, sample_steps=120)) for _ in range(2)]

    def past_the_prefetch(job):
        progress = stack.ledger().job(job.request_id).items[0].progress
        return progress is not None and progress.step > 10 * STEP_TO_PREPARE

    wait_until(lambda: all(map(past_the_prefetch, jobs)), 60, what="two running items")
    return jobs


def test_a_lora_gives_the_same_pixels_wherever_it_is_kept(stack, client, hub, web, make_lora, put_object):
    [(local, picture)] = render(client, DEMO_ADAPTER)
    files = {name: make_lora(name) for name in ("hub", "s3", "web", "upload")}
    hub.push("ann/robots", {"robot.safetensors": files["hub"]})
    web.files["/robot.safetensors"] = files["web"]
    uploaded = requests.put(f"{stack.url}/v1/adapters/robot", data=files["upload"], timeout=30)
    uploaded.raise_for_status()
    places = {
        "upload": uploaded.json()["path"],
        "hub": "hf://ann/robots/robot.safetensors",
        "s3": put_object("loras/robot.safetensors", files["s3"]),
        "web": f"http://{web.place}/robot.safetensors",
    }

    for name, place in places.items():
        [(image, data)] = render(client, place)

        assert pixels(data) == pixels(picture), name
        assert image["timings"]["fetch"] > 0
        [report] = image["adapters"]
        assert report["path"].startswith(place)
        assert report["sha256"] == hashlib.sha256(files[name]).hexdigest()
        assert report["layers_touched"] == local["adapters"][0]["layers_touched"]
    assert "fetch" not in local["timings"]


def test_two_workers_that_need_one_file_download_it_once(stack, client, hub, make_lora, wait_until):
    data = make_lora("shared")
    digest = hashlib.sha256(data).hexdigest()
    hub.push("ann/shared", {"shared.safetensors": data})
    release = hub.hold_next_download(after_bytes=len(data) // 2)
    job = client.submit(request("hf://ann/shared/shared.safetensors", count=2))

    def both_fetch():
        items = stack.ledger().job(job.request_id).items
        return all(item.progress is not None and item.progress.stage == "fetch" for item in items)

    try:
        wait_until(both_fetch, 60, what="two items that wait for the file")
    finally:
        release.set()
    finished(client, job)

    assert {item.slot for item in stack.ledger().job(job.request_id).items} == {"worker-0", "worker-1"}
    assert hub.downloads[digest] == [0]


def test_a_worker_that_is_killed_in_mid_download_leaves_what_it_received_to_the_next(
    stack, client, hub, make_lora, cache_folder, wait_until, wait_for_takeover, wait_for_workers
):
    [(_, picture)] = render(client, DEMO_ADAPTER)
    data = make_lora("killed")
    digest, half = hashlib.sha256(data).hexdigest(), len(data) // 2
    hub.push("ann/killed", {"killed.safetensors": data})
    # Never released: the connection ends with its process.
    hub.hold_next_download(after_bytes=half)
    job = client.submit(request("hf://ann/killed/killed.safetensors"))
    wait_until(lambda: hub.downloads[digest], 60, what="the download")
    partials = cache_folder / "partial"
    wait_until(lambda: [file for file in partials.glob(f"{digest}*") if file.stat().st_size == half], 30, what="a half")
    # The hub counts bytes before it sends them, so a half that has arrived is counted.
    sent_at_submit = hub.bytes_sent[digest] - half

    os.kill(stack.pid(stack.ledger().job(job.request_id).items[0].slot), signal.SIGKILL)
    wait_for_takeover(job)
    [(image, rendered)] = finished(client, job)

    assert hub.downloads[digest] == [0, half]
    assert hub.bytes_sent[digest] == sent_at_submit + len(data)
    assert image["adapters"][0]["sha256"] == digest
    assert pixels(rendered) == pixels(picture)

    # A worker that starts finds what the host has.
    wait_for_workers()
    later = client.submit(request("hf://ann/killed/killed.safetensors", count=8))
    finished(client, later)
    assert {item.slot for item in stack.ledger().job(later.request_id).items} == {"worker-0", "worker-1"}
    assert hub.downloads[digest] == [0, half]


def test_a_cache_that_was_cleared_is_filled_again(client, web, make_lora, cache_folder):
    data = make_lora("kept")
    web.files["/kept.safetensors"] = data
    place = f"http://{web.place}/kept.safetensors"
    render(client, place)
    assert web.downloads.count("/kept.safetensors") == 1

    render(client, place)
    assert web.downloads.count("/kept.safetensors") == 1

    command = [sys.executable, "-m", "shared.cli", "cache", "clear"]
    environment = {**os.environ, "FLUX2_SOURCES_CACHE_DIR": str(cache_folder)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    render(client, place)
    assert web.downloads.count("/kept.safetensors") == 2


def test_a_source_that_changes_after_submission_fails_the_item(stack, client, web, make_lora, put_object, wait_until):
    web.files["/changing.safetensors"] = make_lora("first")
    places = [f"http://{web.place}/changing.safetensors", put_object("changing.safetensors", make_lora("first"))]
    blockers = block_workers(stack, client, wait_until)
    jobs = [client.submit(request(place)) for place in places]

    web.files["/changing.safetensors"] = make_lora("second")
    put_object("changing.safetensors", make_lora("second"))
    for blocker in blockers:
        client.cancel(blocker.request_id)

    for job in jobs:
        status = client.wait(job.request_id, timeout_s=JOB_S)
        assert status.status == "failed"
        assert status.items[0].error.code == "source_changed"
        assert client.result(job.request_id).outputs is None
