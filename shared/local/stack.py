"""Run the whole service on one host, for `flux2 up`, `flux2 demo` and end-to-end tests.

Embedded Redis and S3, the API and each worker run as separate processes, as in a deployment, with all data in one
folder. Without a configured model the workers serve the embedded demonstration model, which the first start copies
there.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

from shared.catalog import find_model
from shared.demo_model import demo_adapter, demo_checkpoint, demo_edit, demo_styles
from shared.errors import LedgerUnavailable, ServerFailed, UnsafeAddress
from shared.extras import require_extras
from shared.key_check import needs_key
from shared.ledger import Ledger
from shared.local.backoff import Backoff
from shared.local.child import ChildProcess
from shared.local.data_folder import settings_file, write_settings
from shared.local.environment import (
    configured_model_variables,
    configured_variables,
    demo_model_variables,
    inherited_environment,
    overridden_names,
    replace_variables,
    unconfigured_environment,
)
from shared.local.ports import LOOPBACK, pick_free_port, require_free_port
from shared.local.servers import EmbeddedServers
from shared.model_places import check_model_places
from shared.settings import Settings

logger = logging.getLogger("flux2.stack")

_API_START_TIMEOUT_S = 30.0
# Loading 99 GB from a cold disk takes minutes.
_WORKER_START_TIMEOUT_S = 900.0
# After its drain a worker still has to hand its item over and leave the ledger.
_STOP_GRACE_S = 10.0
# An API that listens on every address is reached on this one.
_REACHED_AT = {"0.0.0.0": LOOPBACK, "::": "::1"}
_MODEL_FOLDERS = ("FLUX2_MODEL_PATH", "FLUX2_MODEL_TEXT_ENCODER")

#: Called with what the start waits for, and with the last line that the awaited process logged.
OnProgress = Callable[[str, str], None]


class Stack:
    """Redis, S3, the API and workers as one context manager.

    Args:
        data: folder for all data, logs and adapters; it stays after `stop`.
        settings: the settings of the processes; the stack replaces the addresses of the servers.
        inherit: whether the processes see the caller's environment and `.env`; False gives them the defaults.
        workers: number of worker processes; with CUDA each takes one device, in order.
        insecure: whether the API listens for other hosts although there is no API key.
        model: id of the model to serve, as the demonstration model unless the settings name weights; None serves the
            model of the settings.

    Raises:
        ModelNotFound: the catalogue has no such model.
    """

    def __init__(
        self,
        data: Path,
        settings: Settings,
        *,
        inherit: bool = True,
        workers: int = 1,
        model: str | None = None,
        api_port: int | None = None,
        redis_port: int | None = None,
        s3_port: int | None = None,
        insecure: bool = False,
    ) -> None:
        self.data = data.expanduser().absolute()
        self.servers = EmbeddedServers(self.data, redis_port=redis_port, s3_port=s3_port, bucket=settings.s3.bucket)
        self.api_port = api_port or pick_free_port()
        self._settings = settings
        self._inherit = inherit
        self._workers = workers
        self._insecure = insecure
        self._processes: dict[str, ChildProcess] = {}
        self._backoffs: dict[str, Backoff] = {}
        self.model = find_model(settings.model.id if model is None else model).id
        configured = {"path"} if model else {"id", "path"}
        self.serves_demo_model = not settings.model.model_fields_set & configured
        #: Whether the adapters are in the stack's own folder, which the start fills with the demonstration adapters.
        self.owns_adapters = "root" not in settings.adapters.model_fields_set
        self.adapter_root = self.data / "adapters" if self.owns_adapters else settings.adapters.root.absolute()
        has_own_cache = "cache_dir" not in settings.sources.model_fields_set
        self.cache_dir = self.data / "cache" if has_own_cache else settings.sources.cache_dir.absolute()

    @property
    def url(self) -> str:
        """Address of the API on this host."""
        host = _REACHED_AT.get(self._settings.api.host, self._settings.api.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.api_port}"

    @property
    def serves_console(self) -> bool:
        """Whether the API has a page at `/`."""
        return self._settings.api.console

    @property
    def has_demo_adapters(self) -> bool:
        """Whether the demonstration adapters are under the adapter root: never in a folder of the caller's."""
        return self.serves_demo_model and self.owns_adapters

    @property
    def settings_file(self) -> Path:
        """The file with the settings of this stack, for other commands."""
        return settings_file(self.data)

    @property
    def logs(self) -> list[Path]:
        """Log files of the API and the workers."""
        return [process.log for process in self._processes.values()]

    @property
    def demo_checkpoint(self) -> Path:
        """Folder of the demonstration model's copy."""
        return self.data / demo_checkpoint(self.model)

    @property
    def demo_adapter(self) -> Path:
        """Path of the demonstration adapter."""
        return self.adapter_root / demo_adapter(self.model)

    @property
    def demo_edit(self) -> Path:
        """Path of the demonstration edit adapter."""
        return self.adapter_root / demo_edit(self.model)

    def ledger(self) -> Ledger:
        """Open the ledger in this stack's Redis."""
        return Ledger.connect(self.servers.redis.url, self._settings.queue, timeout_s=2)

    def pid(self, name: str) -> int | None:
        """Return the process id of `api` or `worker-N`; None while it does not run."""
        return self._processes[name].pid

    def environment(self) -> dict[str, str]:
        """Return the environment of any `flux2` process that joins this stack."""
        inherited = inherited_environment(self._settings) if self._inherit else unconfigured_environment()
        return replace_variables(inherited, self._owned_variables())

    def overridden_settings(self) -> list[str]:
        """Return the variables of the caller and of `.env` that the stack replaces by others."""
        if not self._inherit:
            return []
        owned = self._owned_variables()
        # Relative folders were only made absolute.
        absolute = {"FLUX2_ADAPTERS_ROOT", "FLUX2_SOURCES_CACHE_DIR"}
        if not self.serves_demo_model:
            absolute.update(_MODEL_FOLDERS)
        owned = {name: value for name, value in owned.items() if name not in absolute | {"FLUX2_API_PORT"}}
        return overridden_names(configured_variables(), {**owned, "FLUX2_WORKER_NAME": ""})

    def start(self, on_progress: OnProgress = lambda stage, detail: None) -> Self:
        """Start everything; return when the API answers and every worker has loaded its model.

        Args:
            on_progress: called several times per second while the start waits.

        Raises:
            MissingExtra: the API's or the worker's libraries are not installed.
            CheckpointError: a folder of the model does not exist, or holds another model.
            UnsafeAddress: the API would listen for other hosts, and there is no API key.
            ServerFailed: the message names the part and quotes its log; nothing is left running.
        """
        self._check_before_start()
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            on_progress("starting Redis and S3", "")
            copying = self._copy_demo_model()
            if copying is not None:
                undo.enter_context(copying)
            self.servers.start()
            self._require_safe_address()
            if copying is not None:
                _require_success(copying)
            write_settings(self.data, self.environment())
            on_progress("starting the API", "")
            self._spawn("api", ["api"])
            ready = [self._spawn_worker(number) for number in range(self._workers)]
            self._await("api", self._api_answers, timeout_s=_API_START_TIMEOUT_S, report=None)
            for number, is_ready in enumerate(ready):
                report = partial(on_progress, f"worker-{number} loads the model")
                self._await(f"worker-{number}", is_ready, timeout_s=_WORKER_START_TIMEOUT_S, report=report)
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

    def _owned_variables(self) -> dict[str, str]:
        """Return the settings that only the stack can know."""
        model = (
            demo_model_variables(self._settings, self.model, self.demo_checkpoint)
            if self.serves_demo_model
            else configured_model_variables(self._settings, self.model)
        )
        return {
            **model,
            **self.servers.environment(),
            "FLUX2_API_PORT": str(self.api_port),
            "FLUX2_ADAPTERS_ROOT": str(self.adapter_root),
            "FLUX2_SOURCES_CACHE_DIR": str(self.cache_dir),
            **({"FLUX2_API_INSECURE": "true"} if self._insecure else {}),
        }

    def _check_before_start(self) -> None:
        """Find what would end the start later, while nothing runs yet."""
        require_extras({"uvicorn": "api", **({"torch": "worker"} if self._workers else {})})
        check_model_places(self._settings.model.model_copy(update={"id": self.model}))
        if not self.owns_adapters and not self.adapter_root.is_dir():
            raise ServerFailed(
                f"FLUX2_ADAPTERS_ROOT {self.adapter_root}: no such folder; create it or correct the path"
            )
        # Otherwise a foreign server on this port would be mistaken for the API.
        require_free_port(
            self.api_port, owner="the API", option="--port or FLUX2_API_PORT", host=self._settings.api.host
        )

    def _require_safe_address(self) -> None:
        """Raise `UnsafeAddress` as the API itself would, with a way to the first key: it is in this stack's Redis."""
        api = self._settings.api
        if self._insecure or not self._inherit or not needs_key(api) or self.ledger().api_keys.any():
            return
        data = shlex.quote(str(self.data))
        raise UnsafeAddress(
            f"the API would listen on {api.host} without any API key, so that whoever reaches it sees and cancels "
            f"everybody's jobs; run `FLUX2_API_HOST=127.0.0.1 flux2 up --data {data}`, make the first key in another "
            f"terminal with `flux2 keys create NAME --data {data}`, and start again; or add --insecure if only trusted "
            "people reach it"
        )

    def _copy_demo_model(self) -> subprocess.Popen[str] | None:
        """Begin to copy the demonstration model into the data folder, and its adapters unless the caller has a root."""
        styles = self.adapter_root / demo_styles(self.model)
        options = {"--adapter": self.demo_adapter, "--styles": styles, "--edit": self.demo_edit}
        # What is there may be the caller's own file under the same name.
        absent = {option: path for option, path in options.items() if self.owns_adapters and not path.exists()}
        if not self.serves_demo_model or (self.demo_checkpoint.exists() and not absent):
            return None
        # A command of the worker's side, which owns the model's files.
        command = [*_flux2("tiny"), str(self.demo_checkpoint), "--model", self.model]
        for option, path in absent.items():
            command += [option, str(path)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def _remove_slot(self, name: str) -> None:
        """Remove a dead worker from the ledger."""
        # Otherwise its last heartbeat would keep it in the list for up to 15 s.
        try:
            self.ledger().workers.remove(name)
        except LedgerUnavailable as error:
            logger.warning("a dead worker still counts as live", extra={"slot": name, "error": str(error)})

    def _spawn_worker(self, number: int) -> Callable[[], bool]:
        """Start a worker; return the test of whether it has loaded its model."""
        name = f"worker-{number}"
        shares_devices = self._workers > 1 and self._settings.worker.device == "auto"
        device = ["--device", f"auto:{number}"] if shares_devices else []
        ledger = self.ledger()
        # The slot of a killed stack would be mistaken for this worker, and so for its readiness.
        self._remove_slot(name)
        self._spawn(name, ["worker", "--name", name, *device])
        return lambda: any(slot.name == name for slot in ledger.workers.live_slots())

    def _spawn(self, name: str, arguments: list[str]) -> None:
        folder = self.data / name
        # Logs may quote prompts.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        process = ChildProcess(name, _flux2(*arguments), folder=folder, environment=self.environment())
        self._processes[name] = process
        process.spawn()

    def _await(
        self, name: str, ready: Callable[[], bool], *, timeout_s: float, report: Callable[[str], None] | None
    ) -> None:
        process = self._processes[name]

        def poll() -> None:
            # A part that another one waits for may be the one that ended.
            self.raise_if_ended()
            if report is not None:
                report(process.last_line())

        process.wait(ready, timeout_s=timeout_s, on_poll=poll)

    def _api_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _flux2(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "shared.cli", *arguments]


def _require_success(copying: subprocess.Popen[str]) -> None:
    _, problems = copying.communicate()
    if copying.returncode:
        raise ServerFailed(f"the demonstration model could not be copied:\n{problems[-2000:]}")
