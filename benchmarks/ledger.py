"""Measure what jobs cost in the ledger: bytes of Redis per item, reads of a whole job, and how long Redis blocks.

A real Redis with its defaults and no GPU: the benchmark claims and commits items itself, with results like those of the
full-size model. Prints a table, or JSON lines with `--json`.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import redis
import typer

from benchmarks.rendered_result import SHA256, describe_result
from shared.catalog import FLUX2_DEV
from shared.console import LineConsole
from shared.job import AdapterRef, ItemResult, Progress
from shared.ledger import Claim, Ledger
from shared.local.redis_server import RedisServer
from shared.request import InferenceRequest
from shared.resolve import resolve_items
from shared.settings import QueueSettings

_ADAPTER = AdapterRef(path="my_lora_job/my_lora.safetensors", sha256=SHA256, size_bytes=344_000_000, multiplier=1.0)
_TIMEOUT_S = 10.0
_SMALL_BUFFERS = 100_000

Row = dict[str, Any]


def main(
    items: Annotated[int, typer.Option(min=1, help="Prompts of the job.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Start a Redis in a temporary folder, store one job in it, run it, and cancel another one."""
    with tempfile.TemporaryDirectory(prefix="flux2-bench-") as data, RedisServer(Path(data)) as server:
        rows = [*_plain(server.url, items), *_longest(server.url, items)]
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [("job", "items are", "bytes per item", "job in kB", "Redis blocked ms", "read of the job ms")]
    for row in rows:
        table.append(
            (
                row["job"],
                row["state"],
                f"{row['bytes_per_item']:.0f}",
                f"{row['bytes_per_item'] * items / 1000:.0f}",
                f"{row['blocked_ms']:.1f}",
                f"{row['read_ms']:.1f}",
            )
        )
    LineConsole().print_rows(table)


def _plain(url: str, items: int) -> Iterator[Row]:
    """A batch of different prompts of usual length, with one adapter."""
    prompts = [{"prompt": f"[trigger] number {n}, {' '.join(['word'] * 16)}"} for n in range(items)]
    yield from _lifetime("plain", url, {"prompts": prompts, "trigger_word": "sks"})


def _longest(url: str, items: int) -> Iterator[Row]:
    """A batch whose prompts all have the length that `FLUX2_API_MAX_BODY_BYTES` leaves to them."""
    length = min(9_990, 4 * 1024**2 // items - 10)
    prompts = [{"prompt": f"[trigger]{n}"} for n in range(items)]
    yield from _lifetime("longest prompts", url, {"prompts": prompts, "trigger_word": "x" * length})


def _lifetime(job: str, url: str, body: dict[str, Any]) -> Iterator[Row]:
    """Yield the costs of a job in each state of its items."""
    request = InferenceRequest(model="flux2", loras=[], **body)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.flushall()
        ledger = Ledger(client, QueueSettings())
        _announce(ledger)
        # The scripts are loaded and the keys that every deployment has are written before the measurement.
        specs = resolve_items(request, FLUX2_DEV, [_ADAPTER])
        ledger.accept("first", specs[:1], record={"warnings": []})
        _run(ledger, 1)
        before = _used_bytes(client)
        job_id = "2f1a3c58-7b2c-4c3e-9f52-8d1e5a9b7c60"

        def row(state: str, blocked_ms: float) -> Row:
            size = (_used_bytes(client) - before) / len(specs)
            started = time.perf_counter()
            assert ledger.job(job_id) is not None
            read_ms = (time.perf_counter() - started) * 1000
            return {"job": job, "state": state, "bytes_per_item": size, "blocked_ms": blocked_ms, "read_ms": read_ms}

        with _longest_block(url) as blocked:
            ledger.accept(job_id, specs, record={"warnings": []})
        yield row("queued", blocked[0])
        with _longest_block(url) as blocked:
            claims = _claim(ledger, len(specs))
        yield row("running", blocked[0])
        with _longest_block(url) as blocked:
            for claim in claims:
                ledger.commit(claim, _result(claim))
        yield row("succeeded", blocked[0])
        client.flushall()
        _announce(ledger)
        ledger.accept("first", specs[:1], record={"warnings": []})
        _run(ledger, 1)
        before = _used_bytes(client)
        ledger.accept(job_id, specs, record={"warnings": []})
        with _longest_block(url) as blocked:
            ledger.cancel(job_id)
        yield row("canceled", blocked[0])


def _used_bytes(client: redis.Redis) -> int:
    """Return the memory of the data, without the buffers of connections and of the append-only file."""
    # A connection keeps the buffer of a large call, and Redis counts it late. New connections have small ones.
    client.connection_pool.disconnect()
    deadline = time.monotonic() + _TIMEOUT_S
    while (memory := client.info("memory"))["mem_clients_normal"] > _SMALL_BUFFERS:
        if time.monotonic() > deadline:
            raise TimeoutError("Redis still counts the buffers of closed connections")
        time.sleep(0.1)
    return int(memory["used_memory"] - memory["mem_clients_normal"] - memory["mem_aof_buffer"])


def _announce(ledger: Ledger) -> None:
    """Announce a worker of this version."""
    report = {"model": "flux2", "state": "ready", "device": "cuda:0", "revision": "r", "precision": "bf16"}
    ledger.workers.beat("host/cuda:0", {**report, "engines": "exact", "warm": "base", "item": "", "base_drift": "0"})


def _claim(ledger: Ledger, count: int) -> list[Claim]:
    claims = []
    for _ in range(count):
        claim = ledger.claim_next(["flux2"], slot="host/cuda:0", boot=SHA256[:32], warm="base")
        assert claim is not None
        ledger.renew(claim, Progress(stage="denoise", step=3, steps=25))
        claims.append(claim)
    return claims


def _run(ledger: Ledger, count: int) -> None:
    for claim in _claim(ledger, count):
        ledger.commit(claim, _result(claim))


def _result(claim: Claim) -> ItemResult:
    """Return a result as a worker with the full-size model reports it."""
    stages = ("encode_prompt", "adapter", "denoise", "decode", "encode_image", "upload")
    timings = dict.fromkeys(stages, 1.2345 + claim.index / 1000)
    return describe_result(claim, timings=timings, change="none" if claim.index else "merged")


@contextmanager
def _longest_block(url: str) -> Iterator[list[float]]:
    """Measure the longest answer time of a PING that another connection sends again and again, in ms."""
    longest = [0.0]
    stopped = threading.Event()

    def ping() -> None:
        with redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S) as client:
            while not stopped.is_set():
                started = time.perf_counter()
                client.ping()
                longest[0] = max(longest[0], (time.perf_counter() - started) * 1000)

    thread = threading.Thread(target=ping, name="ping")
    thread.start()
    try:
        yield longest
    finally:
        stopped.set()
        thread.join()


if __name__ == "__main__":
    typer.run(main)
