"""Compare callers who watch jobs by streams of events with callers who poll: processor time, and how late they know.

A simulated worker moves an item of each watched job on, some of them each second. Times hold for one run on one
machine; the ratio of two rows says more than either.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import httpx2
import typer
import uvloop

from benchmarks.load import JOB_BODY
from shared.console import LineConsole
from shared.job import Progress
from shared.ledger import Claim, Ledger
from shared.local.stack import Stack
from shared.settings import Settings

_STEPS: Final = 1_000_000
_CPU_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_POLL_EVERY_S: Final = 1.0

Row = dict[str, Any]
#: What one caller does with a job until a time.
Follow = Callable[[httpx2.AsyncClient, str, float, "Lateness"], Awaitable[None]]


def main(
    callers: Annotated[int, typer.Option(min=1, help="Callers, each of whom follows a job of its own.")] = 200,
    seconds: Annotated[float, typer.Option(min=2, help="Duration of each measurement.")] = 20.0,
    moves_per_s: Annotated[float, typer.Option(min=1, help="Steps of watched images that are reported a second.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Start the API without workers in a temporary folder, measure, and stop it."""
    with (
        tempfile.TemporaryDirectory(prefix="flux2-listeners-") as data,
        Stack(Path(data), Settings.model_construct(), inherit=False, workers=0) as stack,
    ):
        rows = uvloop.run(_run(stack, callers, seconds, moves_per_s))
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [("what", "API, ms/s", "Redis, ms/s", "p50 late s", "p99 late s", "n")]
    for row in rows:
        figures = [f"{row[name]:.0f}" for name in ("api_ms_per_s", "redis_ms_per_s")]
        late = [f"{row[name]:.2f}" if row["n"] else "" for name in ("p50_s", "p99_s")]
        table.append((row["what"], *figures, *late, str(row["n"])))
    LineConsole().print_rows(table)


class Lateness:
    """The seconds from each step of a job, as the worker reports it, until a caller knows it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._written: dict[str, dict[int, float]] = {}

    def note_written(self, job_id: str, step: int) -> None:
        self._written.setdefault(job_id, {})[step] = time.perf_counter()

    def note_known(self, job_id: str, step: int) -> None:
        """Note that a caller knows a step, and with it all earlier ones."""
        now, written = time.perf_counter(), self._written.get(job_id, {})
        for known in [each for each in written if each <= step]:
            self.seconds.append(now - written.pop(known))


async def _run(stack: Stack, callers: int, seconds: float, moves_per_s: float) -> list[Row]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    ledger = stack.ledger()
    async with httpx2.AsyncClient(base_url=stack.url, timeout=30, limits=limits) as http:
        jobs = [(await http.post("/v1/inference", json=JOB_BODY)).json()["request_id"] for _ in range(callers)]
        claims = [_claim(ledger, number) for number in range(callers)]
        ways: list[tuple[str, Sequence[str], Follow]] = [
            ("nobody", [], _poll),
            (f"{callers} pollers at 1 Hz, a job each", jobs, _poll),
            (f"{callers} streams, a job each", jobs, _watch_job),
            (f"{callers} streams of all {callers} jobs", jobs, _watch_all),
        ]
        return [await _measure(stack, http, way, claims, seconds, moves_per_s) for way in ways]


async def _measure(
    stack: Stack,
    http: httpx2.AsyncClient,
    way: tuple[str, Sequence[str], Follow],
    claims: Sequence[Claim],
    seconds: float,
    moves_per_s: float,
) -> Row:
    what, jobs, follow = way
    lateness = Lateness()
    warm_up_s = 3.0
    until = time.monotonic() + warm_up_s + seconds
    callers = [asyncio.create_task(follow(http, job, until, lateness)) for job in jobs]
    moving = asyncio.create_task(asyncio.to_thread(_move, stack.ledger(), claims, until, moves_per_s, lateness))
    await asyncio.sleep(warm_up_s)
    lateness.seconds.clear()
    pids = stack.pid("api"), stack.servers.redis.pid
    before = [_cpu_s(pid) for pid in pids]
    began = time.monotonic()
    await asyncio.gather(moving, *callers)
    used = [_cpu_s(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
    api, redis = (1000 * each / (time.monotonic() - began) for each in used)
    late = lateness.seconds
    return {
        "what": what,
        "api_ms_per_s": api,
        "redis_ms_per_s": redis,
        "p50_s": statistics.median(late) if late else None,
        "p99_s": statistics.quantiles(late, n=100, method="inclusive")[98] if late else None,
        "n": len(late),
    }


def _claim(ledger: Ledger, number: int) -> Claim:
    claim = ledger.claim_next(("flux2",), slot=f"slot-{number}", boot="boot", warm="base")
    assert claim is not None
    return claim


def _move(ledger: Ledger, claims: Sequence[Claim], until: float, moves_per_s: float, lateness: Lateness) -> None:
    """Report steps at a steady rate, of one image after the other."""
    due = time.monotonic()
    # Later than those of the measurement before.
    step = int(due * moves_per_s) % _STEPS
    while due < until:
        time.sleep(max(0.0, due - time.monotonic()))
        claim = claims[step % len(claims)]
        ledger.renew(claim, Progress(stage="denoise", step=step, steps=_STEPS))
        lateness.note_written(claim.job_id, step)
        step, due = step + 1, due + 1 / moves_per_s


async def _poll(http: httpx2.AsyncClient, job_id: str, until: float, lateness: Lateness) -> None:
    due = time.monotonic() + hash(job_id) % 1000 / 1000 * _POLL_EVERY_S
    while due < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        status = (await http.get(f"/v1/requests/{job_id}/status")).json()
        _note_items(job_id, status["items"], lateness)
        due += _POLL_EVERY_S


async def _watch_job(http: httpx2.AsyncClient, job_id: str, until: float, lateness: Lateness) -> None:
    async for data in _events(http, f"/v1/requests/{job_id}/events", until):
        _note_items(job_id, data.get("items", []), lateness)


async def _watch_all(http: httpx2.AsyncClient, job_id: str, until: float, lateness: Lateness) -> None:
    async for data in _events(http, "/v1/events", until):
        for job in data.get("jobs", []):
            if job["request_id"] == job_id and job["running"]:
                lateness.note_known(job_id, job["running"][0]["step"])


async def _events(http: httpx2.AsyncClient, path: str, until: float) -> AsyncIterator[dict[str, Any]]:
    with suppress(TimeoutError):
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
            async with http.stream("GET", path) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))


def _note_items(job_id: str, items: Sequence[dict[str, Any]], lateness: Lateness) -> None:
    for item in items:
        if item["progress"]:
            lateness.note_known(job_id, item["progress"]["step"])


def _cpu_s(pid: int | None) -> float:
    """Return the processor time that a process has used so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / _CPU_TICKS_PER_S


if __name__ == "__main__":
    typer.run(main)
