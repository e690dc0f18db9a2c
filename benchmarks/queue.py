"""Measure the queue on this host: a real Redis, S3 server, API and worker, with the tiny model.

Times hold for one run on one machine; only the ratios carry over. Prints a table, or JSON lines with `--json`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from flux2_client.client import Client
from flux2_client.demo import demo_request
from shared.console import LineConsole
from shared.local.stack import Stack
from shared.settings import ModelSettings, Settings
from worker.model.load import load_components

_JOB_S = 120.0

Row = dict[str, Any]


def main(
    posts: Annotated[int, typer.Option(min=2, help="Requests of each kind.")] = 300,
    jobs: Annotated[int, typer.Option(min=2, help="Jobs rendered one after another.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Start all services in a temporary folder, measure, and stop them."""
    with (
        tempfile.TemporaryDirectory(prefix="flux2-bench-") as data,
        Stack(Path(data), Settings.model_construct(), inherit=False) as stack,
        Client(stack.url) as client,
    ):
        rows = [*_rendering(stack, client, jobs), *_accepting(stack, client, posts)]
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [("what", "p50 ms", "p99 ms", "ratio", "n")]
    for row in rows:
        table.append((row["what"], f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", row["ratio"], str(row["n"])))
    LineConsole().print_rows(table)


def _accepting(stack: Stack, client: Client, posts: int) -> list[Row]:
    """Measure submitting and polling without rendering: the worker is stopped first, so no job runs."""
    stack.stop_worker(0)
    redis = stack.ledger().redis
    pushes = [_timed(lambda: redis.lpush("bench", "x" * 1000)) for _ in range(posts)]
    push = _row("LPUSH of 1 kB into the same Redis", pushes)
    ids: list[str] = []
    submit = [_timed(lambda: ids.append(client.submit(_small(1.0)).request_id)) for _ in range(posts)]
    status = [_timed(partial(client.status, request_id)) for request_id in ids]
    return [
        push,
        _row("POST /v1/inference to 202", submit, against=push),
        _row("GET status", status, against=push),
    ]


def _rendering(stack: Stack, client: Client, jobs: int) -> list[Row]:
    """Render jobs that alternate between two multipliers, so that each needs an adapter swap."""
    ledger = stack.ledger()
    waited, changed = [], []
    for number in range(jobs):
        job = client.submit(_small(1.0 if number % 2 else 0.5))
        client.wait(job.request_id, timeout_s=_JOB_S, poll_s=0.02)
        done = ledger.job(job.request_id)
        assert done is not None
        [item] = done.items
        assert item.started_ms is not None
        assert item.result is not None
        waited.append((item.started_ms - item.queued_ms) / 1000)
        changed.append(item.result.timings["adapter"])
    model = ModelSettings(path=str(stack.demo_checkpoint), text_encoder=str(stack.demo_checkpoint / "text_encoder"))
    load = _row(
        "load of the tiny base model",
        [_timed(lambda: load_components(model, device=torch.device("cpu"), hf_token=None)) for _ in range(3)],
    )
    return [
        _row("queued to claimed, idle worker", waited),
        load,
        _row("adapter swap (restore and merge)", changed, against=load),
    ]


def _small(multiplier: float) -> dict[str, Any]:
    body = demo_request(multiplier)
    body["prompts"][0] |= {"width": 64, "height": 64, "sample_steps": 1}
    return body


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _row(what: str, seconds: Sequence[float], *, against: Row | None = None) -> Row:
    p50_ms = statistics.median(seconds) * 1000
    p99_ms = statistics.quantiles(seconds, n=100, method="inclusive")[98] * 1000
    ratio = f"{p50_ms / against['p50_ms']:.2f} x {against['what']}" if against else ""
    return {"what": what, "p50_ms": p50_ms, "p99_ms": p99_ms, "ratio": ratio, "n": len(seconds)}


if __name__ == "__main__":
    typer.run(main)
