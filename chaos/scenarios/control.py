"""The control: the storm against plain Celery, which must fail. A checker that let it pass would prove nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import redis
from celery import Celery

from chaos import history, plain
from chaos.checker import FinalState, check
from chaos.history import History
from chaos.trial import Lab, Outcome
from shared.job import SpecReport, State
from shared.ledger import ItemView, JobView
from shared.local.child import ChildProcess
from shared.local.redis_server import RedisServer
from shared.storage.directory import DirectoryStore

_WORKERS = 3
_KILL_S = 2.0
_FREEZE_S = 6.5
# After the last kill: four times the visibility timeout.
_CALM_S = 20.0


def control(lab: Lab, *, items: int = 100) -> Outcome:
    """Kill and freeze plain Celery's workers, first while they are idle, then at work."""
    outcome = Outcome("control", f"plain Celery, acks_late: {items} items under SIGKILL and freezes", must_fail=True)
    folder, rng, began = lab.folder / "control", lab.rng("control"), time.monotonic()
    folder.mkdir()
    record = History(folder / "history.jsonl")
    with ExitStack() as undo:
        server = undo.enter_context(RedisServer(folder))
        client = redis.Redis.from_url(server.url, decode_responses=True)
        names = [f"plain-{number}" for number in range(_WORKERS)]
        workers = {name: _worker(folder, server.url, name, record) for name in names}
        for worker in workers.values():
            undo.callback(worker.stop, grace_s=0)
        accepted = _storm(workers, plain.make(server.url), client, record, rng, items)
        starts, ends = client.hgetall(plain.STARTS), client.hgetall(plain.ENDS)
        events = history.read(record.path)
        final = FinalState(
            jobs=dict(_job(item, int(starts.get(f"{item}:0", 0)), int(ends.get(f"{item}:0", 0))) for item in accepted),
            commits={f"{item}:0": int(ends.get(f"{item}:0", 0)) for item in accepted},
            queues=(),
            listed=len(accepted),
        )
        outcome.violations = check(events, final, DirectoryStore(folder))
    record.close()
    outcome.figures = {
        "items": len(accepted),
        "kills": sum(event["kind"] == "kill" for event in events),
        "never done": sum(f"{item}:0" not in ends for item in accepted),
        "done twice or more": sum(int(count) > 1 for count in ends.values()),
    }
    outcome.wall_s = time.monotonic() - began
    return outcome


def _storm(
    workers: dict[str, ChildProcess], app: Celery, client: redis.Redis, record: History, rng: random.Random, items: int
) -> list[str]:
    """Publish items under fire; return those whose publish succeeded."""
    accepted: list[str] = []

    def publish() -> None:
        item = f"job-{len(accepted)}"
        app.send_task("plain.render", (f"{item}:0", rng.uniform(0.2, 0.6)))
        record.add("accepted", key=item, job=item, items=1)
        accepted.append(item)

    _until(lambda: sum(entry["cmd"] == "brpop" for entry in client.client_list()) >= _WORKERS, 30)
    for name in workers:
        _hit(workers, record, name, signal.SIGSTOP, "freeze")
    # Each message goes to the blocking pop of a frozen worker, which dies before it can read it.
    for _ in workers:
        publish()
    _until(lambda: client.llen("celery") == 0, 10)
    for name in workers:
        _hit(workers, record, name, signal.SIGKILL, "kill")
        workers[name].restart()
    while len(accepted) < items:
        _strike(workers, record, rng)
        for _ in range(10):
            publish()
        threading.Event().wait(_KILL_S)
    for worker in workers.values():
        os.kill(worker.pid or 0, signal.SIGCONT)
    until = time.monotonic() + _CALM_S
    _until(lambda: len(client.hgetall(plain.ENDS)) == items or time.monotonic() > until, 2 * _CALM_S)
    return accepted


def _strike(workers: dict[str, ChildProcess], record: History, rng: random.Random) -> None:
    victim, peer = rng.sample(sorted(workers), 2)
    _hit(workers, record, victim, signal.SIGKILL, "kill")
    workers[victim].restart()
    if rng.random() < 0.5:
        _hit(workers, record, peer, signal.SIGSTOP, "freeze")
        threading.Timer(_FREEZE_S, _thaw, args=[workers[peer], workers[peer].pid]).start()


def _thaw(worker: ChildProcess, pid: int | None) -> None:
    """Send SIGCONT to a process, unless it was killed since."""
    if pid is not None and worker.pid == pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _hit(workers: dict[str, ChildProcess], record: History, name: str, number: signal.Signals, kind: str) -> None:
    pid = workers[name].pid
    assert pid is not None
    record.add(kind, target=name, target_pid=pid)
    os.kill(pid, number)


def _worker(folder: Path, url: str, name: str, record: History) -> ChildProcess:
    own = folder / name
    own.mkdir()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "chaos.plain", url, name, str(record.path)]
    child = ChildProcess(name, command, folder=own, environment=environment)
    child.start(lambda: True, timeout_s=10)
    return child


def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.05)


def _job(item: str, starts: int, ends: int) -> tuple[str, JobView]:
    """Return an item's fate under plain Celery as the job view that the checker reads."""
    state = State.SUCCEEDED if ends else State.QUEUED
    spec = SpecReport(
        prompt="", requested_width=64, requested_height=64, seed=0, num_inference_steps=1, guidance_scale=1.0
    )
    view = ItemView(
        index=0,
        state=state,
        attempt=starts,
        fence=starts,
        spec=spec,
        steps=1,
        progress=None,
        result=None,
        error=None,
        queued_ms=0,
        started_ms=None,
        finished_ms=None,
        slot=None,
    )
    return item, JobView(
        job_id=item,
        model="plain",
        state=state,
        cancel_requested=False,
        record={},
        accepted_ms=0,
        started_ms=None,
        finished_ms=None,
        queue_position=None,
        eta_s=None,
        items=(view,),
    )
