"""`flux2 replay` waits for an API whose Redis is away, and starts no job twice."""

import io
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from PIL import Image

from flux2_client.client import Client
from flux2_client.profiles import Target
from flux2_client.replay import replay_client, run_replay
from shared.console import LineConsole
from shared.errors import LedgerUnavailable
from shared.local.ports import pick_free_port
from shared.local.redis_server import RedisServer

CONFIG = """
config:
  name: my_lora
  process:
    - model: {arch: flux2}
      sample: {format: png, width: 64, height: 64, sample_steps: 2, prompts: ["a", "b --m 0.5"]}
"""


def png():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def redis_of_its_own(tmp_path):
    with RedisServer(tmp_path, port=pick_free_port()) as server:
        yield server


@pytest.fixture
def api(redis_of_its_own, serve_api, s3, settings, adapter_root, goldens):
    (adapter_root / "my_lora").mkdir()
    shutil.copy(goldens / "adapters" / "lora_r4_bf16.safetensors", adapter_root / "my_lora" / "my_lora.safetensors")
    made = settings(
        redis={"url": redis_of_its_own.url, "timeout_s": 0.3},
        storage=s3.storage.model_dump() | {"url_ttl_s": 2},
        s3=s3.s3.model_dump(),
        adapters={"root": adapter_root},
    )
    with serve_api(made) as served:
        yield served


@pytest.fixture
def finish_next(api, store_image):
    """Render the next item as a worker would; return False if nothing is queued, or if Redis is away."""

    def finish():
        try:
            claim = api.ledger.claim_next(["flux2"], slot="test", boot="test", warm="base")
            if claim is None:
                return False
            return api.ledger.commit(claim, store_image(api, claim, png())) == "committed"
        except LedgerUnavailable:
            return False

    return finish


def jobs(api):
    try:
        return api.ledger.jobs(before=None, limit=10).jobs
    except LedgerUnavailable:
        return []


def test_a_replay_survives_a_frozen_and_a_stopped_redis(
    api, redis_of_its_own, tmp_path, wait_until, monkeypatch, finish_next
):
    monkeypatch.setattr("flux2_client.replay._POLL_S", 0.05)
    monkeypatch.setattr("flux2_client.replay.PATIENCE_S", 40)
    # Each failed attempt is said, so that the test sees both outages.
    monkeypatch.setattr("flux2_client.outages._SAME_OUTAGE_S", 0)
    config, output = tmp_path / "config.yaml", tmp_path / "images"
    config.write_text(CONFIG)
    text = io.StringIO()
    console = LineConsole(file=text, width=200)

    def replay():
        with replay_client(console, Target(api.url)) as client:
            run_replay(console, client, config, lora=None, samples=None, output=output)

    # Frozen, so that the submit may take effect although its answer is lost.
    os.kill(redis_of_its_own.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(replay)
        wait_until(lambda: running.done() or "trying again" in text.getvalue(), what="the failure of the submit")
        assert not running.done(), running.exception()
        os.kill(redis_of_its_own.pid, signal.SIGCONT)
        wait_until(lambda: len(jobs(api)) == 2, what="both jobs")

        said = text.getvalue().count("trying again")
        redis_of_its_own.stop()
        wait_until(lambda: running.done() or text.getvalue().count("trying again") > said, what="the failure of a poll")
        redis_of_its_own.start()
        wait_until(finish_next, what="the first image")
        wait_until(finish_next, what="the second image")
        running.result(timeout=20)

    assert sorted(file.name for file in output.iterdir()) == ["sample-0.png", "sample-1.png"]
    assert len(jobs(api)) == 2


def test_a_replay_signs_urls_again_that_expired_before_their_download(
    api, tmp_path, wait_until, monkeypatch, finish_next
):
    monkeypatch.setattr("flux2_client.replay._POLL_S", 0.05)
    config, output = tmp_path / "config.yaml", tmp_path / "images"
    config.write_text(CONFIG.replace("b --m 0.5", "b"))
    expired = []

    class SlowClient(Client):
        def download(self, image):
            if not expired:
                wait_until(lambda: httpx2.get(image.url).status_code == 403, what="the end of the URL")
                expired.append(image.url)
            return super().download(image)

    with ThreadPoolExecutor(1) as pool, SlowClient(api.url) as client:
        console = LineConsole(file=io.StringIO())
        running = pool.submit(run_replay, console, client, config, lora=None, samples=None, output=output)
        for what in ("the first image", "the second image"):
            wait_until(lambda: running.done() or finish_next(), what=what)
        running.result(timeout=20)

    assert expired
    assert sorted(file.name for file in output.iterdir()) == ["sample-0.png", "sample-1.png"]
