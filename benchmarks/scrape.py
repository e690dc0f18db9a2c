"""Measure what Prometheus costs: a scrape of /metrics as the fleet and the tenants grow, and the counts in a heartbeat.

Times hold for one run on one machine; bytes and ratios carry over. Prints a table, or JSON lines with `--json`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from api.metrics.collector import LedgerCollector
from benchmarks.scheduling.redis_meter import measured
from shared.console import LineConsole
from shared.ledger import Ledger, keys
from shared.ledger.connection import connect
from shared.local.redis_server import RedisServer
from shared.metrics import definitions as metrics
from shared.metrics.batches import Batch, Batches
from shared.metrics.tally import Tally
from shared.settings import ApiSettings, QueueSettings

_IMAGE = ("flux2", "exact")
_STAGES = (
    *(metrics.WAIT_SECONDS, metrics.ENCODE_SECONDS, metrics.STEP_SECONDS, metrics.DECODE_SECONDS),
    *(metrics.UPLOAD_SECONDS, metrics.SWAP_SECONDS),
)
_NOW_MS = 1_700_000_000_000

Row = dict[str, Any]


def main(
    slots: Annotated[str, typer.Option(help="Numbers of slots to compare.")] = "8,1000,10000",
    tenants: Annotated[int, typer.Option(min=1, help="Tenants with queued and running items, and usage.")] = 200,
    repeats: Annotated[
        int, typer.Option(min=2, help="Scrapes of each fleet; heartbeats are a hundred times more.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Scrape fleets of each size, then send heartbeats without and with the counts of an image."""
    rows = [_measure_scrapes(int(size), tenants, repeats) for size in slots.split(",")]
    rows += _measure_heartbeats(100 * repeats)
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [tuple(rows[0])]
    for row in rows:
        table.append(tuple(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    LineConsole().print_rows(table)


def _measure_scrapes(slots: int, tenants: int, repeats: int) -> Row:
    with _open_ledger() as ledger:
        _fill(ledger, slots=slots, tenants=tenants)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(LedgerCollector(ledger, most_slots=ApiSettings().metrics_slots))
        answer, times_ms = generate_latest(registry), []
        with measured(ledger.redis) as reading:
            for _ in range(repeats):
                began = time.perf_counter()
                generate_latest(registry)
                times_ms.append((time.perf_counter() - began) * 1000)
    what = f"scrape: {slots} slots, {tenants} tenants"
    return _row(what, times_ms, reading.cpu_s / repeats, len(answer))


def _measure_heartbeats(repeats: int) -> Iterator[Row]:
    """Yield the cost of a heartbeat that changes the slot's item, without counts and with those of an image."""
    with _open_ledger() as ledger:
        _beat(ledger, 0)
        for what, has_counts in (("heartbeat", False), ("heartbeat with the counts of an image", True)):
            times_ms = []
            with measured(ledger.redis) as reading:
                for batch in islice(_batches(has_counts=has_counts), repeats):
                    began = time.perf_counter()
                    ledger.workers.beat("slot-0", {**_report(), "item": f"job:{len(times_ms)}"}, batch=batch)
                    times_ms.append((time.perf_counter() - began) * 1000)
            yield _row(what, times_ms, reading.cpu_s / repeats, reading.aof_bytes // repeats)


def _batches(*, has_counts: bool) -> Iterator[Batch | None]:
    tally = Tally()
    batches = Batches(tally)
    while True:
        if has_counts:
            _count_image(tally)
        batch = batches.next()
        yield batch
        batches.confirm(batch)


def _row(what: str, times_ms: list[float], redis_cpu_s: float, size_bytes: int) -> Row:
    """Return a row; the size is that of the answer of a scrape, and what a heartbeat adds to the append-only file."""
    p50_ms = statistics.median(times_ms)
    return {"what": what, "p50_ms": p50_ms, "redis_cpu_ms": redis_cpu_s * 1000, "bytes": size_bytes}


@contextmanager
def _open_ledger() -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory(prefix="flux2-bench-") as data, RedisServer(Path(data)) as server:
        # A clock that stands: filling takes longer than a slot lives without a heartbeat.
        ledger = Ledger(connect(server.url, timeout_s=30), QueueSettings(), clock_ms=lambda: _NOW_MS)
        # Each write would wait for the disk.
        ledger.redis.config_set("appendfsync", "no")
        yield ledger


def _fill(ledger: Ledger, *, slots: int, tenants: int) -> None:
    """Make a fleet of slots that has rendered, and queues of tenants."""
    tally = Tally()
    _count_image(tally)
    batch = Batches(tally).next()
    assert batch is not None
    ledger.metrics.add("slot-0", batch)
    with ledger.redis.pipeline(transaction=False) as pipe:
        for number in range(tenants):
            tenant = f"tenant-{number}"
            pipe.hset(keys.shares("flux2"), f"5|{tenant}", 10)
            pipe.hset(keys.busy("flux2"), tenant, 1)
            pipe.hset(keys.USAGE_TOTALS, f"{tenant}|flux2", "100 2600000000 1100000 1000")
        pipe.execute()
    for number in range(slots):
        _beat(ledger, number)
        # Redis' own clock would forget the report.
        ledger.redis.persist(keys.slot(f"slot-{number}"))


def _beat(ledger: Ledger, number: int) -> None:
    ledger.workers.beat(f"slot-{number}", _report())


def _report() -> dict[str, str]:
    texts = {"model": "flux2", "state": "busy", "device": "cuda:0", "revision": "r", "precision": "bf16"}
    memory = {"memory_bytes": str(80 * 2**30), "gpu_memory_used_bytes": str(70 * 2**30), "gpu_utilization": "0.97"}
    pools = {"engines": "exact", "features": "merged,references,sigmas,large"}
    return {**texts, **memory, **pools, "warm": "base", "item": "job:0", "base_drift": "0"}


def _count_image(tally: Tally) -> None:
    for stage in _STAGES:
        tally.observe(stage, 0.3, *_IMAGE)
    tally.count(metrics.ADAPTER_FILES, "root")
    for ratio in (metrics.GPU_UTILIZATION_RATIO, metrics.GPU_MEMORY_RATIO):
        tally.observe(ratio, 0.97, "flux2")


if __name__ == "__main__":
    typer.run(main)
