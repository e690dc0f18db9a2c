"""Measure what a slot of a large fleet costs Redis while it waits and renders, and how many connections it holds.

Real worker processes that are simulated, in fleets of two sizes; each figure is the difference, for one more slot.
Prints a table, or JSON lines with `--json`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.scheduling.redis_meter import measured
from benchmarks.scheduling.traffic import make_spec
from shared.celery_app import make_celery, send_wakeups
from shared.console import LineConsole
from shared.errors import ServerFailed
from shared.ledger import Ledger
from shared.ledger.connection import Client, connect
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings

_START_S, _POLL_S = 120.0, 0.1
# In a large fleet each caretaker pauses for a minute; in one of this size it would not.
_CARETAKER = {"FLUX2_QUEUE_REAP_S": "60", "FLUX2_QUEUE_AUDIT_S": "60", "FLUX2_QUEUE_LEASE_TTL_S": "240"}
# As seldom as a slot of a large fleet sends progress: with a renewal of its lease.
_STEP_S, _STEPS = 3.0, 2000

Figures = dict[str, float]


def main(
    slots: Annotated[str, typer.Option(help="Sizes of the two fleets.")] = "2,10",
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds that each measurement takes.")] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Run both fleets, one after the other."""
    small, large = sorted(int(size) for size in slots.split(","))
    with tempfile.TemporaryDirectory(prefix="flux2-bench-") as folder:
        measured_fleets = [_measure_fleet(Path(folder) / str(size), size, seconds) for size in (small, large)]
    rows: list[dict[str, str | float]] = []
    for state, before in measured_fleets[0].items():
        after = measured_fleets[1][state]
        rows.append({"slot": state, **{name: (after[name] - before[name]) / (large - small) for name in before}})
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [tuple(rows[0])]
    for row in rows:
        table.append(tuple(value if isinstance(value, str) else f"{value:.2f}" for value in row.values()))
    LineConsole().print_rows(table)


def _measure_fleet(folder: Path, slots: int, seconds: float) -> dict[str, Figures]:
    """Return the figures of a fleet that waits, and of the same fleet while every slot renders."""
    with RedisServer(folder) as redis, _fleet(redis, folder, slots) as ledger:
        client = connect(redis.url, timeout_s=30)
        idle = _read(client, seconds)
        # Longer than the measurement.
        specs = [
            make_spec(number, adapter=0, steps=_STEPS).model_copy(update={"adapters": ()}) for number in range(slots)
        ]
        ledger.accept("job", specs, record={})
        send_wakeups(make_celery(redis.url, side="api", timeout_s=5), specs[0].model, count=slots)
        _wait_for(ledger, slots, state="busy")
        busy = _read(client, seconds)
        ledger.cancel("job")
    return {"waits": idle, "renders": busy}


def _read(client: Client, seconds: float) -> Figures:
    commands = client.info("stats")["total_commands_processed"]
    with measured(client) as reading:
        time.sleep(seconds)
    stats = client.info("stats")
    return {
        "connections": float(client.info("clients")["connected_clients"]),
        "commands_s": (stats["total_commands_processed"] - commands) / seconds,
        "redis_cpu_ms_s": 1000 * reading.cpu_s / seconds,
        "aof_bytes_s": reading.aof_bytes / seconds,
    }


@contextmanager
def _fleet(redis: RedisServer, folder: Path, slots: int) -> Iterator[Ledger]:
    """Run simulated slots inside the block, all of them ready."""
    environment = {
        **os.environ,
        **redis.environment(),
        **_CARETAKER,
        "FLUX2_STORAGE_BACKEND": "directory",
        "FLUX2_STORAGE_DIRECTORY": str(folder / "objects"),
        "FLUX2_WORKER_LOCK_DIR": str(folder),
        "FLUX2_LOG_LEVEL": "ERROR",
    }
    # At least two, which a supervisor starts.
    command = [sys.executable, "-m", "shared.cli", "worker", "--simulate", str(slots)]
    process = subprocess.Popen([*command, "--simulated-step-s", str(_STEP_S)], env=environment)
    ledger = Ledger.connect(redis.url, QueueSettings(), timeout_s=5)
    try:
        _wait_for(ledger, slots, state="ready")
        yield ledger
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_for(ledger: Ledger, slots: int, *, state: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while sum(slot.state == state for slot in ledger.workers.live_slots()) < slots:
        if time.monotonic() > deadline_s:
            raise ServerFailed(f"the slots are not {state} within {_START_S:g} s; the lines above may say why")
        time.sleep(_POLL_S)


if __name__ == "__main__":
    typer.run(main)
