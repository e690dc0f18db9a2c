"""Run the whole service on one host, for `flux2 up`, `flux2 demo` and end-to-end tests.

Embedded Redis and S3, the API and each worker run as separate processes, as in a deployment, with all data in one
folder. Without a configured model the workers serve the embedded demonstration model, which the first start copies
there.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

from shared.demo_model import DEMO_ADAPTER, DEMO_STYLES
from shared.errors import LedgerUnavailable, ServerFailed
from shared.extras import require_extras
from shared.ledger import Ledger
from shared.local.backoff import Backoff
from shared.local.child import ChildProcess
from shared.local.environment import (
    configured_model_variables,
    demo_model_variables,
    inherited_environment,
    unconfigured_environment,
)
from shared.local.ports import LOOPBACK, pick_free_port, require_free_port
from shared.local.servers import EmbeddedServers
from shared.settings import Settings

logger = logging.getLogger("flux2.stack")

_API_START_TIMEOUT_S = 30.0
# Loading 99 GB from a cold disk takes minutes.
_WORKER_START_TIMEOUT_S = 900.0
# After its drain a worker still has to hand its item over and leave the ledger.
_STOP_GRACE_S = 10.0


class Stack:
    """Redis, S3, the API and workers as one context manager.

    Args:
        data: folder for all data, logs and adapters; it stays after `stop`.
        settings: the settings of the processes; the stack replaces the addresses of the servers.
        inherit: whether the processes see the caller's environment and `.env`; False gives them the defaults.
        workers: number of worker processes; with CUDA each takes one device, in order.
    """

    def __init__(
        self,
        data: Path,
        settings: Settings,
        *,
        inherit: bool = True,
        workers: int = 1,
        api_port: int | None = None,
        redis_port: int | None = None,
        s3_port: int | None = None,
    ) -> None:
        self.data = data.absolute()
        self.servers = EmbeddedServers(self.data, redis_port=redis_port, s3_port=s3_port)
        self.api_port = api_port or pick_free_port()
        self._settings = settings
        self._inherit = inherit
        self._workers = workers
        self._processes: dict[str, ChildProcess] = {}
        self._backoffs: dict[str, Backoff] = {}
        self.serves_demo_model = not settings.model.model_fields_set & {"id", "path"}
        configured_root = "root" in settings.adapters.model_fields_set
        self.adapter_root = settings.adapters.root.absolute() if configured_root else self.data / "adapters"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.api_port}"

    @property
    def logs(self) -> list[Path]:
        """Log files of the API and the workers."""
        return [process.log for process in self._processes.values()]

    @property
    def demo_checkpoint(self) -> Path:
        """Folder of the demonstration model's copy."""
        return self.data / "tiny"

    def ledger(self) -> Ledger:
        """Open the ledger in this stack's Redis."""
        return Ledger.connect(self.servers.redis.url, self._settings.queue, timeout_s=2)

    def pid(self, name: str) -> int | None:
        """Return the process id of `api` or `worker-N`; None while it does not run."""
        return self._processes[name].pid

    def environment(self) -> dict[str, str]:
        """Return the environment of any `flux2` process that joins this stack."""
        inherited = inherited_environment(self._settings) if self._inherit else unconfigured_environment()
        model = (
            demo_model_variables(self._settings, self.demo_checkpoint)
            if self.serves_demo_model
            else configured_model_variables(self._settings)
        )
        return {
            **inherited,
            **model,
            **self.servers.environment(),
            "FLUX2_API_HOST": LOOPBACK,
            "FLUX2_API_PORT": str(self.api_port),
            "FLUX2_API_BASE_URL": "",
            "FLUX2_ADAPTERS_ROOT": str(self.adapter_root),
        }

    def start(self) -> Self:
        """Start everything; return when the API answers and every worker has loaded its model.

        Raises:
            MissingExtra: the API's or the worker's libraries are not installed.
            ServerFailed: the message names the part and quotes its log; nothing is left running.
        """
        require_extras({"uvicorn": "api", **({"torch": "worker"} if self._workers else {})})
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.servers.start()
            self._write_demo_model()
            # Otherwise a foreign server on this port would be mistaken for the API.
            require_free_port(self.api_port, owner="the API")
            self._start("api", ["api"], ready=self._api_answers, timeout_s=_API_START_TIMEOUT_S)
            for number in range(self._workers):
                self._start_worker(number)
            undo.pop_all()
        return self

    def stop(self) -> None:
        """Stop everything: workers first, so that they can hand over their items; Redis and S3 last."""
        for process in self._processes.values():
            process.terminate()
        while self._processes:
            _, process = self._processes.popitem()
            process.stop(grace_s=self._grace_s)
        self.servers.stop()

    def stop_worker(self, number: int) -> None:
        """Drain one worker and do not restart it."""
        self._processes.pop(f"worker-{number}").stop(grace_s=self._grace_s)

    def raise_if_ended(self) -> None:
        """Raise `ServerFailed`, with the end of its log, if a process has ended by itself."""
        self.servers.raise_if_ended()
        for process in self._processes.values():
            process.raise_if_ended()

    def restart_dead(self) -> None:
        """Restart the API and workers that ended by themselves, with growing waits for those that die at once.

        Raises:
            ServerFailed: Redis or S3 has ended, so nothing else can work.
        """
        self.servers.raise_if_ended()
        for process in self._processes.values():
            if process.is_alive():
                continue
            self._remove_slot(process.name)
            backoff = self._backoffs.setdefault(process.name, Backoff())
            if backoff.is_due(started_s=process.started_s, now_s=time.monotonic()):
                logger.warning("restarting a dead process", extra={"part": process.name, "log": str(process.log)})
                process.restart()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _grace_s(self) -> float:
        return self._settings.worker.drain_s + _STOP_GRACE_S

    def _write_demo_model(self) -> None:
        adapter = self.adapter_root / DEMO_ADAPTER
        if not self.serves_demo_model or (self.demo_checkpoint.exists() and adapter.exists()):
            return
        # A command of the worker's side, which alone may import torch.
        command = [*_flux2("tiny"), str(self.demo_checkpoint), "--adapter", str(adapter)]
        command += ["--styles", str(self.adapter_root / DEMO_STYLES)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerFailed(f"`flux2 tiny` failed:\n{done.stderr[-2000:]}")

    def _remove_slot(self, name: str) -> None:
        """Remove a dead worker from the ledger."""
        # Otherwise its last heartbeat would keep it in the list for up to 15 s.
        try:
            self.ledger().workers.remove(name)
        except LedgerUnavailable as error:
            logger.warning("a dead worker still counts as live", extra={"slot": name, "error": str(error)})

    def _start_worker(self, number: int) -> None:
        name = f"worker-{number}"
        shares_devices = self._workers > 1 and self._settings.worker.device == "auto"
        device = ["--device", f"auto:{number}"] if shares_devices else []
        ledger = self.ledger()
        # The slot of a killed stack would be mistaken for this worker, and so for its readiness.
        self._remove_slot(name)
        self._start(
            name,
            ["worker", "--name", name, *device],
            ready=lambda: any(slot.name == name for slot in ledger.workers.live_slots()),
            timeout_s=_WORKER_START_TIMEOUT_S,
        )

    def _start(self, name: str, arguments: list[str], *, ready: Callable[[], bool], timeout_s: float) -> None:
        folder = self.data / name
        folder.mkdir(parents=True, exist_ok=True)
        process = ChildProcess(name, _flux2(*arguments), folder=folder, environment=self.environment())
        self._processes[name] = process
        process.start(ready, timeout_s=timeout_s)

    def _api_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _flux2(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "shared.cli", *arguments]
