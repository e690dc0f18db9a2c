"""A process with a CUDA fault ends and its item goes on; each runs in a subprocess, which no other test shares."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from shared.celery_app import make_celery, send_wakeups
from shared.errors import OutOfMemory
from shared.job import ItemSpec, State
from shared.ledger import Ledger
from shared.settings import ModelSettings, QueueSettings
from worker.consumer.process_end import EXIT_FAULT
from worker.model.demo_model import write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering.renderer import Renderer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PROBE = """
import torch
from worker.device import probe
device = torch.device("cuda:0")
assert probe(device) is None
{harm}
print("found:", probe(device, timeout_s=5))
import os; os._exit(0)
"""
ASSERT = """
try:
    torch.zeros(4, device=device)[torch.tensor([99], device=device)].sum().item()
except RuntimeError:
    pass
"""
HANG = "torch.cuda._sleep(2**62)"
FULL = """
try:
    torch.empty(2**50, dtype=torch.uint8, device=device)
except torch.OutOfMemoryError:
    pass
"""

# A worker as `flux2 worker` starts it, whose first item meets a fault from which torch cannot recover.
SERVE = "from shared.settings import Settings; from worker.serve import serve; serve(Settings())"
POISONED = f"""
import torch
from worker.rendering.renderer import Renderer
def denoise(self, *_, **__):
    return torch.zeros(4, device="cuda:0")[torch.tensor([99], device="cuda:0")].sum().item()
Renderer._denoise = denoise
{SERVE}
"""
# A worker that allocates much memory and whose item never ends.
BALLAST = 4 * 2**30
ENDLESS = f"""
import torch, time
from worker.rendering.renderer import Renderer
def denoise(self, *_, **__):
    ballast = torch.zeros({BALLAST}, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    time.sleep(600)
Renderer._denoise = denoise
{SERVE}
"""


def found(harm):
    command = [sys.executable, "-c", PROBE.format(harm=harm)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("found: ")[2].strip()


def test_the_probe_finds_a_device_assert():
    assert "CUDA error" in found(ASSERT)


def test_the_probe_finds_a_kernel_that_hangs():
    assert found(HANG) == "it did not answer"


def test_running_out_of_memory_is_not_a_device_fault():
    assert found(FULL) == "None"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


def spec(side):
    return ItemSpec(
        model="flux2", prompt="a red circle", neg="", width=side, height=side, requested_width=side,
        requested_height=side, seed=1, num_inference_steps=2, guidance_scale=4.0, adapters=(), output_format="png",
    )  # fmt: skip


@pytest.fixture
def fleet(redis_client, redis_url, checkpoint, tmp_path):
    """Start workers, each a process on cuda:0; `ledger` and `submit` are the API's side."""
    ledger = Ledger(redis_client, QueueSettings())
    celery = make_celery(redis_url, side="api", timeout_s=2)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "FLUX2_REDIS_URL": redis_url,
        "FLUX2_STORAGE_BACKEND": "directory",
        "FLUX2_STORAGE_DIRECTORY": str(tmp_path / "objects"),
        "FLUX2_MODEL_PATH": str(checkpoint),
        "FLUX2_MODEL_TEXT_ENCODER": str(checkpoint / "text_encoder"),
        "FLUX2_WORKER_DEVICE": "cuda:0",
        "FLUX2_WORKER_LOCK_DIR": str(tmp_path),
        "FLUX2_QUEUE_LEASE_TTL_S": "4",
        "FLUX2_QUEUE_RENEW_S": "0.5",
    }
    processes = []

    def start(code):
        processes.append(subprocess.Popen([sys.executable, "-c", code], env=environment))
        return processes[-1]

    def submit():
        ledger.accept("job", [spec(64)], record={})
        send_wakeups(celery, "flux2", count=1)

    yield SimpleNamespace(start=start, submit=submit, item=lambda: ledger.job("job").items[0])

    for process in processes:
        process.kill()
        process.wait()


def test_a_poisoned_process_requeues_its_item_and_exits_to_be_started_again(fleet, wait_until):
    fleet.submit()

    assert fleet.start(POISONED).wait(120) == EXIT_FAULT

    handed = fleet.item()
    assert (handed.state, handed.attempt) == (State.QUEUED, 1)
    fleet.start(SERVE)
    wait_until(lambda: fleet.item().state is State.SUCCEEDED, 120, what="the picture")
    assert fleet.item().attempt == 2


def test_a_killed_process_frees_its_memory_and_its_gpu_at_once(fleet, wait_until):
    torch.zeros(1, device="cuda:0")

    def free():
        return torch.cuda.mem_get_info(0)[0]

    before = free()
    fleet.submit()
    victim = fleet.start(ENDLESS)
    wait_until(lambda: free() < before - BALLAST, 120, what="the memory in use")

    victim.send_signal(signal.SIGKILL)
    victim.wait()

    wait_until(lambda: free() > before - 2**28, 5, what="the memory given back")
    fleet.start(SERVE)
    wait_until(lambda: fleet.item().state is State.SUCCEEDED, 120, what="the picture")


@pytest.fixture
def allow():
    """Limit this process to the memory that it has now, plus a part of what it needed at its peak."""
    torch.zeros(1, device="cuda:0")
    torch.cuda.reset_peak_memory_stats(0)
    needed = []

    def allow(part):
        needed.append(torch.cuda.max_memory_allocated(0))
        torch.cuda.empty_cache()
        held = torch.cuda.memory_reserved(0)
        limit = held + part * (needed[0] - torch.cuda.memory_allocated(0))
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info(0)[1], 0)

    yield allow
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


def test_a_decode_that_does_not_fit_runs_in_tiles_and_an_item_that_never_fits_fails_by_name(checkpoint, allow):
    device = torch.device("cuda:0")
    model = ModelSettings(path=str(checkpoint), text_encoder=str(checkpoint / "text_encoder"), precision="fp32")
    renderer = Renderer(load_components(model, device=device, hf_token=None), prompt_cache=4)

    def render():
        return renderer.render(spec(2048), [], on_progress=lambda _: None)

    whole = render()
    allow(0.35)
    tiled = render()
    allow(0.02)
    with pytest.raises(OutOfMemory, match="2048x2048 does not fit on cuda:0"):
        render()
    allow(3)
    again = render()

    assert (whole.pipeline.decode, tiled.pipeline.decode, again.pipeline.decode) == ("whole", "tiled", "whole")
    assert again.image.tobytes() == whole.image.tobytes()
