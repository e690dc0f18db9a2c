"""The whole service on one host, for `flux2 up`, `flux2 demo` and end-to-end tests.

Embedded Redis and S3, the API and workers, each a process of its own as in a deployment, with all data in one folder.
Without a configured model the workers serve the embedded demonstration model, copied there on the first start.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

from dotenv import dotenv_values

from shared.demo_model import DEMO_ADAPTER, DEMO_STYLES
from shared.errors import LedgerUnavailable, ServerFailed
from shared.ledger import Ledger
from shared.local.backoff import Backoff
from shared.local.child import LOOPBACK, Child, pick_free_port, require_free_port
from shared.local.servers import EmbeddedServers
from shared.settings import Settings

logger = logging.getLogger("flux2.stack")

_API_START_S = 30.0
# Loading 99 GB from a cold disk takes minutes.
_WORKER_START_S = 900.0
# After its drain a worker still has to hand its item over and say good-bye.
_STOP_GRACE_S = 10.0
# Variables that decide how this project's processes behave.
_OURS = ("FLUX2_", "HF_TOKEN", "AI_TOOLKIT_PATH", "AWS_")


class Stack:
    """Everything running, as a context manager.

    Args:
        data: folder of all state; kept between starts.
        settings: a configured model and adapter root are respected; the servers' addresses are our own.
        inherit: False starts from the defaults, whatever the caller's environment and `.env` say.
        workers: processes on this host; with CUDA each takes one device, in order.
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
        self._children: dict[str, Child] = {}
        self._waits: dict[str, Backoff] = {}
        self.serves_demo_model = not settings.model.model_fields_set & {"id", "path"}
        configured_root = "root" in settings.adapters.model_fields_set
        self.adapter_root = settings.adapters.root.absolute() if configured_root else self.data / "adapters"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.api_port}"

    @property
    def logs(self) -> list[Path]:
        """The log of each process that this stack started."""
        return [child.log for child in self._children.values()]

    def ledger(self) -> Ledger:
        """A ledger of this stack's Redis."""
        return Ledger.connect(self.servers.redis.url, self._settings.queue, timeout_s=2)

    def pid(self, name: str) -> int | None:
        """Process id of `api` or `worker-N`; None while it does not run."""
        return self._children[name].pid

    def environment(self) -> dict[str, str]:
        """The caller's environment with what this stack decides; for any `flux2` process that joins it."""
        decided = {
            **self.servers.environment(),
            "FLUX2_API_HOST": LOOPBACK,
            "FLUX2_API_PORT": str(self.api_port),
            "FLUX2_API_BASE_URL": "",
            "FLUX2_ADAPTERS_ROOT": str(self.adapter_root),
        }
        if self.serves_demo_model:
            decided |= {
                "FLUX2_MODEL_PATH": str(self._checkpoint),
                "FLUX2_MODEL_TEXT_ENCODER": str(self._checkpoint / "text_encoder"),
            }
            if "precision" not in self._settings.model.model_fields_set:
                # bfloat16 convolutions take 10 times as long on processors without AVX-512.
                decided |= {"FLUX2_MODEL_PRECISION": "fp32"}
        else:
            named = {"PATH": self._settings.model.path, "TEXT_ENCODER": self._settings.model.text_encoder}
            local = {name: Path(value).absolute() for name, value in named.items() if value and Path(value).exists()}
            decided |= {f"FLUX2_MODEL_{name}": str(path) for name, path in local.items()}
        if self._inherit:  # the processes run in folders of their own
            others = {
                "FLUX2_WORKER_LOCK_DIR": self._settings.worker.lock_dir,
                "AI_TOOLKIT_PATH": self._settings.ai_toolkit_path,
            }
            decided |= {name: str(path.absolute()) for name, path in others.items() if path}
        if not self._inherit:
            return {**{name: value for name, value in os.environ.items() if not name.startswith(_OURS)}, **decided}
        return {**_dotenv(), **os.environ, **decided}

    def start(self) -> Self:
        """Return when the API answers and every worker has its model loaded.

        Raises:
            ServerFailed: naming the part and quoting its log; nothing is left running.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.servers.start()
            self._write_demo_model()
            require_free_port(self.api_port, of="the API")  # or another's server would answer for ours
            self._start("api", ["api"], ready=self._api_answers, timeout_s=_API_START_S)
            for number in range(self._workers):
                self._start_worker(number)
            undo.pop_all()
        return self

    def stop(self) -> None:
        """End everything, workers first, so that they can hand over what they hold."""
        for child in self._children.values():
            child.terminate()
        while self._children:
            _, child = self._children.popitem()
            child.stop(grace_s=self._grace_s)
        self.servers.stop()

    def stop_worker(self, number: int) -> None:
        """End one worker in good order and forget it."""
        self._children.pop(f"worker-{number}").stop(grace_s=self._grace_s)

    def check(self) -> None:
        """Raise `ServerFailed`, with the end of its log, if a process has ended by itself."""
        self.servers.check()
        for child in self._children.values():
            child.check()

    def restart_dead(self) -> None:
        """Start again what ended by itself, later and later what dies at once; the ledger gives back what it held.

        Raises:
            ServerFailed: Redis or S3 has ended, without which there is nothing to go on with.
        """
        self.servers.check()
        for child in self._children.values():
            if child.is_alive():
                continue
            self._forget_slot(child.name)
            waits = self._waits.setdefault(child.name, Backoff())
            if waits.is_due(started_s=child.started_s, now_s=time.monotonic()):
                logger.warning("process ended and is started again", extra={"part": child.name, "log": str(child.log)})
                child.restart()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _grace_s(self) -> float:
        return self._settings.worker.drain_s + _STOP_GRACE_S

    @property
    def _checkpoint(self) -> Path:
        return self.data / "tiny"

    def _write_demo_model(self) -> None:
        adapter = self.adapter_root / DEMO_ADAPTER
        if not self.serves_demo_model or (self._checkpoint.exists() and adapter.exists()):
            return
        command = [*_flux2("tiny"), str(self._checkpoint), "--adapter", str(adapter)]
        command += ["--styles", str(self.adapter_root / DEMO_STYLES)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerFailed(f"`flux2 tiny` failed:\n{done.stderr[-2000:]}")

    def _forget_slot(self, name: str) -> None:
        """Take a worker that is dead out of the list of live ones, where its last heartbeat would keep it a while."""
        try:
            self.ledger().workers.remove(name)
        except LedgerUnavailable as error:
            logger.warning("a dead worker still counts as live", extra={"slot": name, "error": str(error)})

    def _start_worker(self, number: int) -> None:
        name = f"worker-{number}"
        shared = self._workers > 1 and self._settings.worker.device == "auto"
        device = ["--device", f"auto:{number}"] if shared else []
        ledger = self.ledger()
        self._forget_slot(name)
        self._start(
            name,
            ["worker", "--name", name, *device],
            ready=lambda: any(slot.name == name for slot in ledger.workers.live_slots()),
            timeout_s=_WORKER_START_S,
        )

    def _start(self, name: str, arguments: list[str], *, ready: Callable[[], bool], timeout_s: float) -> None:
        folder = self.data / name
        folder.mkdir(parents=True, exist_ok=True)
        child = Child(name, _flux2(*arguments), folder=folder, environment=self.environment())
        self._children[name] = child
        child.start(ready, timeout_s=timeout_s)

    def _api_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _dotenv() -> dict[str, str]:
    """Read the `.env` that this process' own settings came from: its children run elsewhere."""
    return {name: value for name, value in dotenv_values(".env").items() if value is not None}


def _flux2(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "shared.cli", *arguments]
