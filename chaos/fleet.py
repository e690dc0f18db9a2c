"""The system under test: Redis, S3, the API and workers, each a process that can be killed, frozen or cut off."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import redis

from chaos import clock
from chaos.disk import RedisOnSmallDisk, SmallDisk
from chaos.history import History
from chaos.mutate import Mutation
from chaos.s3 import S3Proxy
from chaos.tcp import Wire
from shared.celery_app import make_celery, send_wakeups
from shared.errors import ServerFailed
from shared.ledger import Ledger, keys
from shared.ledger.connection import connect
from shared.local.child import ChildProcess
from shared.local.ports import LOOPBACK, pick_free_port
from shared.local.redis_server import RedisServer
from shared.local.s3_server import S3Server
from shared.settings import QueueSettings, S3Settings
from shared.storage import ObjectStore
from shared.storage.s3 import S3Store

T = TypeVar("T")

_POLL_S = 0.02
_SUPERVISE_S = 0.1
_START_S = 120.0


@dataclass(frozen=True)
class Plan:
    """The set-up of one scenario's fleet; times are short, so that recovery takes seconds.

    Attributes:
        apis: API processes; callers reach them under one address.
        step_s: length of one denoising step of the stub renderer.
        renewals: renewals in the length of a lease.
        budget_s: how long an upload is retried.
        clock_moves: the scenario sets the clock of Redis by `chaos.clock.shift`.
        small_disk: Redis has a disk of a few MiB, which the scenario fills.
        devices: those of each worker, which renders with the goldens' model on all of them; empty for the stub.
    """

    workers: int = 3
    apis: int = 1
    step_s: float = 0.02
    ttl_s: float = 4.0
    reap_s: float = 0.25
    renewals: int = 4
    max_attempts: int = 3
    drain_s: float = 2.0
    stall_s: float = 60.0
    budget_s: float = 10.0
    s3_timeout_s: float = 1.0
    clock_moves: bool = False
    small_disk: bool = False
    devices: str = ""
    mutation: Mutation = Mutation.NONE

    @property
    def queue(self) -> QueueSettings:
        return QueueSettings(
            lease_ttl_s=self.ttl_s, renew_s=self.ttl_s / self.renewals, reap_s=self.reap_s, audit_s=1.0
        )


class Fleet:
    """Runs all processes, as a context manager; a supervisor restarts those that die.

    Attributes:
        kept_down: names of processes that the supervisor leaves dead.
        wires: wires by process name; each process reaches Redis through its own wire, which can be cut.
        disk: the disk of Redis, if the scenario fills it.
        balancer: forwards the calls to `url` to the API processes.
    """

    def __init__(self, folder: Path, plan: Plan, s3: S3Server, rng: random.Random) -> None:
        self.plan = plan
        self.folder = folder
        self.history = History(folder / "history.jsonl")
        self.disk = SmallDisk(folder / "redis") if plan.small_disk else None
        port = pick_free_port()
        self.redis = RedisOnSmallDisk(folder, self.disk, port=port) if self.disk else RedisServer(folder, port=port)
        self.s3 = S3Proxy(s3.port, rng=rng, silence_s=1.5 * plan.s3_timeout_s)
        self.wires: dict[str, Wire] = {}
        self.kept_down: set[str] = set()
        self._model = self._write_model() if plan.devices else {}
        self._s3 = s3
        self._prefix = f"{folder.name}/"
        names = ["api", *(f"api-{number}" for number in range(2, plan.apis + 1))]
        self._api_ports = {name: pick_free_port() for name in names}
        self.balancer = Wire(*self._api_ports.values())
        self._children: dict[str, ChildProcess] = {}
        self._undo = ExitStack()
        # Held while a process is signalled or restarted: its id may belong to another process after a restart.
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._client = redis.Redis(port=self.redis.port, socket_timeout=2)
        self._supervisor = threading.Thread(target=self._supervise, name="chaos-supervisor", daemon=True)

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            if self.disk:
                undo.enter_context(self.disk)
            undo.enter_context(self.redis)
            undo.enter_context(self.s3)
            undo.enter_context(self.balancer)
            undo.callback(self._stop_children)
            for name in (*self.apis, *(f"worker-{number}" for number in range(self.plan.workers))):
                self.wires[name] = undo.enter_context(Wire(self.redis.port))
                self._start(name)
            self._supervisor.start()
            undo.callback(self._stop_supervisor)
            self.wait(self._is_up, _START_S, what="the start of the API and all workers")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        self.history.close()

    @property
    def url(self) -> str:
        """The address of the API; with several processes, each connection goes to the next one that listens."""
        return f"http://{LOOPBACK}:{self.balancer.port}" if self.plan.apis > 1 else self.url_of("api")

    def url_of(self, api: str) -> str:
        """Return the address of one API process."""
        return f"http://{LOOPBACK}:{self._api_ports[api]}"

    @property
    def apis(self) -> list[str]:
        return list(self._api_ports)

    @property
    def workers(self) -> list[str]:
        return [name for name in self._children if name.startswith("worker-")]

    def ledger(self) -> Ledger:
        """Open a ledger on a new connection that bypasses all proxies."""
        client = connect(self.redis.url, timeout_s=2)
        moving = partial(clock.now_ms, client) if self.plan.clock_moves else None
        return Ledger(client, self.plan.queue, clock_ms=moving)

    def store(self) -> ObjectStore:
        """Open the object store on a connection that bypasses the proxy."""
        return S3Store(
            S3Settings(bucket=self._s3.bucket, endpoint_url=self._s3.url, addressing_style="path"),
            credentials={"aws_access_key_id": self._s3.access_key, "aws_secret_access_key": self._s3.secret_key},
            prefix=self._prefix,
        )

    def kill(self, name: str) -> None:
        """Send SIGKILL to a process; the supervisor restarts it."""
        self._signal(name, signal.SIGKILL, "kill")

    def freeze(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP, "freeze")

    def thaw(self, name: str) -> None:
        self._signal(name, signal.SIGCONT, "thaw")

    def terminate(self, name: str) -> int | None:
        """Send SIGTERM to a process; return its process id."""
        return self._signal(name, signal.SIGTERM, "terminate")

    def pid(self, name: str) -> int | None:
        return self._children[name].pid

    def kill_redis(self, *, down_s: float) -> None:
        """Send SIGKILL to Redis, and start it again on its files after `down_s`."""
        assert self.redis.pid is not None
        self.history.add("redis down")
        os.kill(self.redis.pid, signal.SIGKILL)
        self._stopped.wait(down_s)
        self.redis.stop()
        self.redis.start()
        self.history.add("redis up")

    def freeze_redis(self, *, for_s: float) -> None:
        """Stop Redis with SIGSTOP for a while, as a paused host or a stalled disk does: it keeps its run id."""
        assert self.redis.pid is not None
        self.history.add("redis frozen")
        os.kill(self.redis.pid, signal.SIGSTOP)
        self._stopped.wait(for_s)
        os.kill(self.redis.pid, signal.SIGCONT)
        self.history.add("redis thawed")

    def lose_wakeup(self) -> bool:
        """Delete one wake-up, as if its publish had failed; return False if no wake-up waits, or if Redis is away."""
        try:
            taken = self._client.lpop(keys.wake_list("flux2"))
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        return taken is not None

    def send_wakeups(self, count: int) -> None:
        """Send wake-ups beyond those that the API sends."""
        send_wakeups(make_celery(self.redis.url, side="api", timeout_s=2), "flux2", count=count)

    def flux2(self, *words: str) -> str:
        """Run the command `flux2` as an operator of the service does; return its output."""
        command = [sys.executable, "-m", "shared.cli", *words]
        done = subprocess.run(command, env=self.environment("operator"), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerFailed(f"flux2 {' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def restore(self) -> None:
        """Thaw and restart every process, and wait until all are up."""
        self.kept_down.clear()
        for name in self._children:
            self.thaw(name)
        self.wait(self._is_up, _START_S, what="the return of all processes")

    def wait(self, condition: Callable[[], T], timeout_s: float, *, what: str) -> T:
        """Poll until the condition is true; return its value.

        Raises:
            TimeoutError: it is still false after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not reached within {timeout_s:g} s; see {self.folder}")
            self._stopped.wait(_POLL_S)
        return value

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of one process."""
        plan = self.plan
        redis_port = self.wires[name].port if name in self.wires else self.redis.port
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **self._s3.environment(),
            "FLUX2_S3_ENDPOINT_URL": self.s3.url,
            "FLUX2_S3_TIMEOUT_S": str(plan.s3_timeout_s),
            "FLUX2_STORAGE_PREFIX": self._prefix,
            "FLUX2_STORAGE_RETRY_BUDGET_S": str(plan.budget_s),
            "FLUX2_REDIS_URL": f"redis://{LOOPBACK}:{redis_port}/0",
            "FLUX2_QUEUE_LEASE_TTL_S": str(plan.queue.lease_ttl_s),
            "FLUX2_QUEUE_RENEW_S": str(plan.queue.renew_s),
            "FLUX2_QUEUE_REAP_S": str(plan.queue.reap_s),
            "FLUX2_QUEUE_AUDIT_S": str(plan.queue.audit_s),
            "FLUX2_QUEUE_MAX_ATTEMPTS": str(plan.max_attempts),
            "FLUX2_WORKER_DRAIN_S": str(plan.drain_s),
            "FLUX2_WORKER_STALL_S": str(plan.stall_s),
            "FLUX2_WORKER_LOCK_DIR": str(self.folder / "locks"),
            "FLUX2_API_PORT": str(self._api_ports.get(name, 0)),
            "FLUX2_LOG_LEVEL": "WARNING",
            **self._model,
        }

    def answers(self, api: str) -> bool:
        """Return whether an API process takes calls."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url_of(api)}/health", timeout=1):
            return True
        return False

    @property
    def model_folder(self) -> Path:
        """Folder of the model of a fleet that renders with it."""
        return self.folder / "model"

    def _write_model(self) -> dict[str, str]:
        # Imported here: torch takes seconds, and the other scenarios need none.
        from chaos.group import write_model

        return write_model(self.model_folder)

    def _is_up(self) -> bool:
        return all(map(self.answers, self.apis)) and len(self.ledger().workers.live_slots()) == self.plan.workers

    def _start(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir()
        child = ChildProcess(name, self._command(name), folder=folder, environment=self.environment(name))
        self._children[name] = child
        child.start(lambda: True, timeout_s=_START_S)

    def _command(self, name: str) -> list[str]:
        changes = ["--mutation", self.plan.mutation.value, *(["--clock-moves"] if self.plan.clock_moves else [])]
        if name in self._api_ports:
            return [sys.executable, "-m", "chaos.process", "api", *changes]
        own = ["--history", str(self.history.path), "--step-s", str(self.plan.step_s)]
        own += ["--devices", self.plan.devices] if self.plan.devices else []
        return [sys.executable, "-m", "chaos.process", "worker", name, *own, *changes]

    def _signal(self, name: str, number: signal.Signals, kind: str) -> int | None:
        with self._lock:
            pid = self._children[name].pid
            if pid is not None and self._children[name].is_alive():
                self.history.add(kind, target=name, target_pid=pid)
                os.kill(pid, number)
            return pid

    def _supervise(self) -> None:
        while not self._stopped.wait(_SUPERVISE_S):
            for name, child in self._children.items():
                with self._lock:
                    if name not in self.kept_down and not child.is_alive():
                        self.history.add("restart", target=name)
                        child.restart()

    def _stop_supervisor(self) -> None:
        self._stopped.set()
        self._supervisor.join()

    def _stop_children(self) -> None:
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            child.stop(grace_s=0.0)
