"""Measure the API under load: 200 clients poll once a second while 10 jobs a second are submitted.

A last row shows the answers to clients, and their times, while Redis is frozen. Times hold for one run on one machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
import uvloop

from shared.console import LineConsole
from shared.local.stack import Stack
from shared.settings import Settings

#: The request of each job.
JOB_BODY = {
    "model": "flux2",
    "loras": [],
    "prompts": [{"prompt": "a cat", "width": 64, "height": 64, "sample_steps": 1}],
}

Row = dict[str, Any]


def main(
    pollers: Annotated[int, typer.Option(min=1, help="Clients that poll a status once a second.")] = 200,
    seconds: Annotated[float, typer.Option(min=2, help="Duration of the measurement.")] = 30.0,
    submits_per_s: Annotated[float, typer.Option(min=0.1, help="Jobs submitted each second at the same time.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Start the API without workers in a temporary folder, measure, and stop it."""
    with (
        tempfile.TemporaryDirectory(prefix="flux2-load-") as data,
        Stack(Path(data), Settings.model_construct(), inherit=False, workers=0) as stack,
    ):
        rows = uvloop.run(_run(stack, pollers, seconds, submits_per_s))
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [("what", "p50 ms", "p99 ms", "slowest ms", "n", "answers")]
    for row in rows:
        times = [f"{row[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")]
        table.append((row["what"], *times, str(row["n"]), row["answers"]))
    LineConsole().print_rows(table)


async def _run(stack: Stack, pollers: int, seconds: float, submits_per_s: float) -> list[Row]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=stack.url, timeout=10, limits=limits) as http:
        jobs = [(await http.post("/v1/inference", json=JOB_BODY)).json()["request_id"] for _ in range(pollers)]
        redis = stack.ledger().redis
        pushes = []
        for _ in range(300):
            began = time.perf_counter()
            redis.lpush("bench", "x" * 1000)
            pushes.append((0, time.perf_counter() - began))
        until = time.monotonic() + seconds
        polls, submits = await asyncio.gather(
            asyncio.gather(*(_repeat(http, "GET", f"/v1/requests/{job}/status", 1.0, until) for job in jobs)),
            _repeat(http, "POST", "/v1/inference", 1 / submits_per_s, until),
        )
        pid = stack.servers.redis.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        hung = await asyncio.gather(*(_once(http, "GET", f"/v1/requests/{job}/status") for job in jobs))
        os.kill(pid, signal.SIGCONT)
    return [
        _row("LPUSH of 1 kB into the same Redis, idle", pushes),
        _row(f"GET status, {pollers} pollers at 1 Hz", [answer for answers in polls for answer in answers]),
        _row(f"POST to 202 at the same time, {submits_per_s:g} a second", submits),
        _row(f"GET status of {pollers} at once, Redis frozen", hung),
    ]


async def _repeat(
    http: httpx2.AsyncClient, method: str, path: str, each_s: float, until: float
) -> list[tuple[int, float]]:
    """Send requests at a steady rate, however long the answers take; each path starts at a different phase."""
    answers = []
    due = time.monotonic() + hash(path) % 1000 / 1000 * each_s
    while due < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        answers.append(await _once(http, method, path))
        due += each_s
    return answers


async def _once(http: httpx2.AsyncClient, method: str, path: str) -> tuple[int, float]:
    began = time.perf_counter()
    answer = await http.request(method, path, json=JOB_BODY if method == "POST" else None)
    return answer.status_code, time.perf_counter() - began


def _row(what: str, answers: Sequence[tuple[int, float]]) -> Row:
    times = [seconds * 1000 for _, seconds in answers]
    counts: dict[int, int] = {}
    for status, _ in answers:
        counts[status] = counts.get(status, 0) + 1
    return {
        "what": what,
        "p50_ms": statistics.median(times),
        "p99_ms": statistics.quantiles(times, n=100, method="inclusive")[98],
        "max_ms": max(times),
        "n": len(times),
        "answers": ", ".join(f"{count} x {status}" for status, count in counts.items() if status),
    }


if __name__ == "__main__":
    typer.run(main)
