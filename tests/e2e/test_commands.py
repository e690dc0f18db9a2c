"""`flux2 up` and `flux2 demo` as a person runs them."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from html import escape
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from flux2_client.client import Client
from shared.demo_model import EDITS, PROMPTS
from shared.local.ports import pick_free_port

BASE_URL = "https://flux2.example.com"


def processes_naming(folder):
    """Command lines and working directories of live processes that name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            where = os.readlink(process / "cwd")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if str(folder) in where or any(str(folder) in word for word in words):
            found.append(words)
    return found


@pytest.fixture
def up(tmp_path, wait_until):
    """`flux2 up` on a new folder; yields its process and its address."""
    port = pick_free_port()
    data = tmp_path / "data"
    command = [sys.executable, "-m", "shared.cli", "up", "--data", str(data), "--port", str(port)]
    environment = {**os.environ, "FLUX2_WORKER_DEVICE": "cpu", "COLUMNS": "80"}
    environment |= {"FLUX2_API_BASE_URL": BASE_URL, "FLUX2_REDIS_URL": "redis://127.0.0.1:1/0"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        yield process, f"http://127.0.0.1:{port}", data
        if process.poll() is None:
            process.kill()


def is_ready(url):
    try:
        return bool(httpx2.get(f"{url}/ready", timeout=5).json()["slots"])
    except httpx2.TransportError:
        return False


def small(seed):
    prompt = {"prompt": "a cat", "width": 64, "height": 64, "sample_steps": 2, "seed": seed}
    return {"model": "flux2", "loras": [], "prompts": [prompt]}


def on_the_stack(data, *arguments):
    """Run a command that joins the stack by its data folder alone."""
    command = [sys.executable, "-m", "shared.cli", *arguments, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_up_serves_until_interrupted_and_leaves_nothing_running(up, wait_until, tmp_path):
    process, url, data = up
    wait_until(lambda: is_ready(url), 90, what="`flux2 up`")
    with Client(url) as client:
        job = client.submit(small(1))
        assert client.wait(job.request_id, timeout_s=60).status == "succeeded"
    (tmp_path / "request.json").write_text(json.dumps(small(1)))

    checked = on_the_stack(data, "doctor")
    rendered = on_the_stack(data, "render", str(tmp_path / "request.json"), "--output", str(tmp_path / "out"))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 0, output
    assert job.status_url.startswith(f"{BASE_URL}/")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert rendered.returncode == 0, rendered.stderr
    assert (tmp_path / "out" / "0.png").is_file()
    lines = output.splitlines()
    assert lines[:3] == ["starting Redis and S3", "starting the API", "worker-0 loads the model"]
    assert f"console   {url}/" in lines
    assert f"API       {url}  (documentation: {url}/docs)" in lines
    for part in ("api", "worker-0"):
        assert f"log       {data}/{part}/server.log" in lines
    assert "not used  FLUX2_REDIS_URL: this command brings its own" in lines
    assert processes_naming(data) == []


def test_demo_renders_a_batch_edits_and_the_example_at_two_multipliers_and_leaves_nothing_running(tmp_path):
    output = tmp_path / "images"
    command = [sys.executable, "-m", "shared.cli", "demo", "--output", str(output), "--size", "256"]
    environment = {**os.environ, "COLUMNS": "200", "TMPDIR": str(tmp_path)}

    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    pictures = [picture.read_bytes() for picture in sorted(output.glob("*.png"))]
    page = (output / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures) - 1  # all but the sheet of edits
    assert all(escape(prompt) in page for prompt in (*PROMPTS, *EDITS))
    sizes = [Image.open(io.BytesIO(picture)).size for picture in pictures]
    sheet = (128 + len(EDITS) * (128 + 8), 128)
    assert sizes == [(128, 128)] * (len(PROMPTS) + len(EDITS)) + [sheet] + [(256, 256)] * 2
    assert len(set(pictures)) == len(pictures)
    assert len(re.findall(r"^url +http://127\.0\.0\.1:\d+/\S+X-Amz-Signature=", done.stdout, re.MULTILINE)) == 4
    assert "adapter merged" in done.stdout
    assert "adapter swapped" in done.stdout
    assert "22 of 33 layers" in done.stdout
    assert "encode_references" in done.stdout
    assert processes_naming(tmp_path) == []
