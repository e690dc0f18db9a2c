"""`flux2 worker --simulate 2` as processes on the session's Redis and S3."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from PIL import ImageStat

from shared.errors import ServerFailed
from shared.ledger import Ledger
from shared.settings import QueueSettings
from worker import serve
from worker.consumer.slot_health import find_problem, read_health
from worker.simulation.company import refuse_rendering_slots, refuse_simulated_slots
from worker.simulation.renderer import SimulatedRenderer


@pytest.fixture
def ledger(redis_client, redis_url):
    return Ledger.connect(redis_url, QueueSettings(), timeout_s=5)


@pytest.fixture
def fleet(ledger, redis_url, s3, s3_server, wait_until, tmp_path):
    """Two simulated slots, both ready."""
    environment = {
        **os.environ,
        **s3_server.environment(),
        "FLUX2_REDIS_URL": redis_url,
        "FLUX2_STORAGE_PREFIX": s3.storage.prefix,
        "FLUX2_ADAPTERS_ROOT": str(tmp_path),
        "FLUX2_WORKER_NAME": "host",
        "FLUX2_WORKER_LOCK_DIR": str(tmp_path),
        "FLUX2_WORKER_HEALTH_DIR": str(tmp_path / "health"),
    }
    command = [sys.executable, "-m", "shared.cli", "worker", "--simulate", "2", "--simulated-step-s", "0.2"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(ledger.workers.live_slots()) == 2, 60, what="the start of both slots")
    yield process
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert not ledger.workers.live_slots()


def test_simulated_slots_finish_jobs_with_pictures_that_say_so(fleet, ledger, item, wait_until, tmp_path):
    job = ledger.accept("job", [item(seed=seed) for seed in range(4)], record={}).job_id
    wait_until(lambda: ledger.job(job).state == "succeeded", 60, what="the job's end")
    view = ledger.job(job)
    assert {item.slot for item in view.items} == {"host-0", "host-1"}
    for item in view.items:
        assert item.result.pipeline.device == "simulated"
        assert item.result.warnings == ("simulated: no model drew this image",)
    # What the probes of a container see.
    health = tmp_path / "health"
    wait_until(lambda: find_problem(health, "ready", slots=2, now_s=time.monotonic()) is None, what="the health files")
    assert [found.slot for found in read_health(health)] == ["host-0", "host-1"]


def test_a_simulated_slot_offers_previews_that_get_sharper(item):
    taken = []
    sink = SimpleNamespace(
        is_due=lambda step, steps: step in (1, 3),
        offer=lambda preview, *, step, steps: taken.append((step, steps, preview)),
    )
    spec = item(width=256, height=128, num_inference_steps=4)

    SimulatedRenderer(0, load_reference=lambda _: b"").render(spec, [], on_progress=lambda _: None, previews=sink)

    assert [(step, steps) for step, steps, _ in taken] == [(1, 4), (3, 4)]
    early, late = (preview.image() for _, _, preview in taken)
    assert early.size == late.size == (128, 64)
    contrasts = [sum(ImageStat.Stat(image).stddev) for image in (early, late)]
    assert contrasts[0] < contrasts[1]


def test_slots_that_render_and_simulated_ones_refuse_each_other(ledger, slot_report):
    ledger.workers.beat("real", slot_report())
    refuse_simulated_slots(ledger)
    with pytest.raises(ServerFailed, match="workers of this Redis render"):
        refuse_rendering_slots(ledger)
    ledger.workers.remove("real")
    ledger.workers.beat("made-up", slot_report(precision="simulated"))
    refuse_rendering_slots(ledger)
    with pytest.raises(ServerFailed, match="slots of this Redis are simulated"):
        refuse_simulated_slots(ledger)


def test_a_slot_that_renders_looks_for_simulated_ones_again_when_its_model_is_loaded(
    monkeypatch, ledger, s3, redis_url, settings, slot_report
):
    def load(*_, **__):
        ledger.workers.beat("made-up", slot_report(precision="simulated"))
        return None, None

    monkeypatch.setattr(serve, "_load", load)
    made = s3.model_copy(update={"redis": settings(redis={"url": redis_url}).redis})
    with ExitStack() as opened, pytest.raises(ServerFailed, match="slots of this Redis are simulated"):
        serve._open(made, "real", [torch.device("cpu")], opened)
