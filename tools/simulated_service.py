"""A service on this host for pictures and examples: Redis, the API and simulated slots, without a model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import httpx2

from flux2_client.client import Client
from shared.errors import ApiError
from shared.local.ports import pick_free_port
from shared.local.redis_server import RedisServer

_ADAPTERS = Path(__file__).parent.parent / "worker/model/demo_checkpoint/adapters"
_START_S, _POLL_S = 60.0, 0.2


@contextmanager
def simulated_service(
    *,
    slots: int,
    step_s: float,
    adapters: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
    redis: RedisServer | None = None,
    key: str | None = None,
    log: IO[bytes] | None = None,
) -> Iterator[str]:
    """Run the service inside the block, all slots of it ready; the value is its address.

    Args:
        step_s: seconds of a step at 1024x1024.
        adapters: demonstration adapters by their names under the adapter root.
        settings: variables for the API and the slots.
        redis: a server that runs; None starts one.
        key: an API key, if `redis` has some.
        log: gets what they write to standard error; None for this process' own.
    """
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flux2-example-")))
        redis = redis or stack.enter_context(RedisServer(root / "redis"))
        port = pick_free_port()
        environment = {
            **os.environ,
            **redis.environment(),
            "FLUX2_API_PORT": str(port),
            "FLUX2_STORAGE_BACKEND": "directory",
            "FLUX2_STORAGE_DIRECTORY": str(root / "objects"),
            "FLUX2_ADAPTERS_ROOT": str(_copy_adapters(root / "adapters", adapters)),
            "FLUX2_WORKER_LOCK_DIR": str(root),
            "FLUX2_WORKER_NAME": "gpu",
            **(settings or {}),
        }
        worker = ["worker", f"--simulate={slots}", f"--simulated-step-s={step_s}"]
        for command in (["api"], worker):
            stack.enter_context(_running(command, environment, log))
        url = f"http://127.0.0.1:{port}"
        _wait_for_slots(url, slots, key)
        yield url


def submit(url: str, *, tenant: str, lora: str, prompts: Sequence[Mapping[str, Any]], **fields: Any) -> None:
    """Submit a job as a tenant, which no client does: a proxy names tenants."""
    body = {"model": "flux2", "prompts": prompts, "loras": [{"path": lora}] if lora else [], **fields}
    answer = httpx2.post(f"{url}/v1/inference", json=body, headers={"X-Tenant": tenant}, timeout=60)
    answer.raise_for_status()


def _copy_adapters(root: Path, adapters: Mapping[str, str]) -> Path:
    for name, source in adapters.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_ADAPTERS / f"{source}.safetensors", target)
    return root


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "shared.cli", *command], env=environment, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_for_slots(url: str, slots: int, key: str | None) -> None:
    deadline_s = time.monotonic() + _START_S
    with Client(url, retry_s=0, api_key=key) as client:
        while time.monotonic() < deadline_s:
            try:
                if client.queue().slots == slots:
                    return
            except ApiError:
                # The API has not started.
                pass
            time.sleep(_POLL_S)
    raise SystemExit("the service did not start; its log says why")
