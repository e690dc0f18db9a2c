"""Measure what a claim costs as the fleet and the queue grow: the real ledger in a real Redis, with simulated slots.

Times hold for one run on one machine; only the ratios carry over. Prints a table, or JSON lines with `--json`.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.claim_rate import measure_rate, worker_processes
from benchmarks.rendered_result import describe_result
from shared.console import LineConsole
from shared.job import AdapterRef, ItemError, ItemSpec, pools
from shared.ledger import Claim, Ledger, keys
from shared.ledger.acceptance import Submission
from shared.ledger.connection import connect
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings

_BOOT = "boot"
_FEATURES = ("merged", "references", "sigmas", "large")
_POOLS = pools("flux2", ["exact"], _FEATURES)
_GIB, _MORE_GIB = 80, 141
_TIMINGS = {"denoise": 11.0, "decode": 0.2, "upload": 0.1}
_CLAIMS_IN_TURN = 20
_ITEMS_PER_JOB, _JOBS_PER_CALL, _LARGE_ITEMS = 5, 20, 10

Row = dict[str, Any]


def main(
    slots: Annotated[str, typer.Option(help="Numbers of slots to compare; the first is the base of the ratio.")] = (
        "8,1000,10000"
    ),
    tenants: Annotated[
        str, typer.Option(help="Numbers of queued tenants to compare, with 8 slots.")
    ] = "100,5000,20000",
    items: Annotated[int, typer.Option(min=100, help="Queued items.")] = 100_000,
    claims: Annotated[int, typer.Option(min=20, help="Claims that each row measures.")] = 1000,
    rate_s: Annotated[float, typer.Option(min=0.1, help="Seconds of claims and commits from two processes.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Fill a queue for each size, and measure claims, one of each size after the other."""
    by_slots = [(size, 200) for size in _numbers(slots)]
    by_tenants = [(8, size) for size in _numbers(tenants)]
    with worker_processes() as processes:
        rows = [
            row
            for sizes in (by_slots, by_tenants)
            for row in _compare(sizes, processes, items=items, claims=claims, rate_s=rate_s)
        ]
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [tuple(rows[0])]
    for row in rows:
        table.append(tuple(f"{value:.2f}" if isinstance(value, float) else f"{value:,}" for value in row.values()))
    LineConsole().print_rows(table)


def _compare(
    sizes: Sequence[tuple[int, int]], processes: ProcessPoolExecutor, *, items: int, claims: int, rate_s: float
) -> list[Row]:
    """Measure fleets of (slots, tenants), each in its own Redis; the first is the base of the ratios."""
    with ExitStack() as stack:
        fleets = [stack.enter_context(_fleet(slots, tenants, items=items)) for slots, tenants in sizes]
        # Alternately, so that another process on this machine slows all of them down alike; several at a time, because
        # no Redis shares the processor's caches with others in a real fleet.
        for _ in range(0, claims, _CLAIMS_IN_TURN):
            for fleet in fleets:
                for _ in range(_CLAIMS_IN_TURN):
                    fleet.run_item()
        rows = [fleet.row() | {"claims_and_commits_a_second": fleet.rate(processes, rate_s)} for fleet in fleets]
    return [
        {
            **row,
            "ratio_cpu": row["cpu_ms_an_item"] / rows[0]["cpu_ms_an_item"],
            "ratio_p50": row["redis_p50_ms"] / rows[0]["redis_p50_ms"],
            "ratio_p99": row["redis_p99_ms"] / rows[0]["redis_p99_ms"],
        }
        for row in rows
    ]


@contextmanager
def _fleet(slots: int, tenants: int, *, items: int) -> Iterator[_Fleet]:
    with tempfile.TemporaryDirectory(prefix="flux2-bench-") as data, RedisServer(Path(data)) as server:
        # Filling takes longer than a slot lives without a heartbeat, so the ledger's clock is slow: 0.1 ms a call.
        calls = count(10_000_000_000_000)
        client = connect(server.url, timeout_s=30)
        ledger = Ledger(client, QueueSettings(cap=10**7, lease_ttl_s=3600), clock_ms=lambda: next(calls) // 10)
        # Each write would wait for the disk, for the same time at every size.
        ledger.redis.config_set("appendfsync", "no")
        # The log holds the claims, which take longer; writing down each command of a script would slow them down.
        ledger.redis.config_set("slowlog-log-slower-than", 20)
        yield _Fleet(ledger, server.url, slots=slots, tenants=tenants, items=items)


class _Fleet:
    """Simulated slots that each run one item of a full queue."""

    def __init__(self, ledger: Ledger, url: str, *, slots: int, tenants: int, items: int) -> None:
        self._ledger = ledger
        self._url = url
        self._size = {"slots": slots, "tenants": tenants, "items": items}
        self._chance = random.Random(1)
        self._waited_ms: list[float] = []
        self._redis_ms: list[float] = []
        bytes_before = self._used_bytes()
        _fill(ledger, self._chance, tenants=tenants, items=items)
        self._item_bytes = (self._used_bytes() - bytes_before) / items
        self._running = {slot: _claim(ledger, slot, warm="base") for slot in range(slots)}
        for slot, claim in self._running.items():
            _beat(ledger, slot, claim)
        _queue_large_items(ledger)
        # Redis' own clock would forget the reports.
        for name in ledger.redis.zrange(keys.SLOTS, 0, -1):
            ledger.redis.persist(keys.slot(name))
        self._cpu_s_before = self._cpu_s()

    def _cpu_s(self) -> float:
        """Return the processor time that Redis has used; other processes on this machine add nothing to it."""
        used = self._ledger.redis.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

    def run_item(self) -> None:
        """End the item of a random slot, claim its next one, and measure the claim."""
        slot = self._chance.randrange(len(self._running))
        done = self._running[slot]
        self._ledger.commit(done, describe_result(done, timings=_TIMINGS, change="none"), gpu_s=11.5)
        started = time.perf_counter()
        self._running[slot] = _claim(self._ledger, slot, warm=done.spec.adapter_key)
        self._waited_ms.append((time.perf_counter() - started) * 1000)
        self._redis_ms.append(self._ledger.redis.slowlog_get(1)[0]["duration"] / 1000)
        _beat(self._ledger, slot, self._running[slot])

    def _used_bytes(self) -> int:
        return int(self._ledger.redis.info("memory")["used_memory"])

    def rate(self, processes: ProcessPoolExecutor, seconds: float) -> float:
        """Return the claims and commits a second that slots in two processes make."""
        slots = [_slot_name(slot) for slot in self._running]
        return measure_rate(processes, self._url, slots, _POOLS, now_ms=self._ledger.now_ms(), seconds=seconds)

    def row(self) -> Row:
        """Return the times of the claims: as the client sees them, and as Redis counts them."""
        times = {"client": self._waited_ms, "redis": self._redis_ms}
        percentiles = {
            f"{who}_{name}_ms": statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
            for who, values in times.items()
            for name, percent in (("p50", 50), ("p99", 99))
        }
        # A commit, a claim and a heartbeat each.
        cpu_ms = (self._cpu_s() - self._cpu_s_before) * 1000 / len(self._redis_ms)
        return self._size | percentiles | {"cpu_ms_an_item": cpu_ms, "bytes_an_item": self._item_bytes}


def _queue_large_items(ledger: Ledger) -> None:
    """Queue items that only a slot with more memory may claim, so that each claim has to find out that it may not."""
    report = {"model": "flux2", "engines": "exact", "features": ",".join(_FEATURES)}
    ledger.workers.beat("larger", {**report, "warm": "base", "memory_bytes": str(_MORE_GIB * 2**30)})
    error = ItemError(code="out_of_memory", message="it does not fit", retryable=False)
    for number in range(_LARGE_ITEMS):
        slot = f"full-{number}"
        claim = ledger.claim_next(_POOLS, slot=slot, boot=_BOOT, warm="base")
        assert claim is not None
        ledger.release_too_large(claim, memory_bytes=_GIB * 2**30, error=error, too_large=error)


def _fill(ledger: Ledger, chance: random.Random, *, tenants: int, items: int) -> None:
    """Queue jobs of five items over 1,000 adapters, each tenant at least once."""
    jobs = [
        Submission(
            f"job-{number}", [_spec(chance.randrange(1000))] * _ITEMS_PER_JOB, record={}, tenant=f"t{number % tenants}"
        )
        for number in range(items // _ITEMS_PER_JOB)
    ]
    for first in range(0, len(jobs), _JOBS_PER_CALL):
        ledger.accept_all(jobs[first : first + _JOBS_PER_CALL])


def _spec(adapter: int) -> ItemSpec:
    return ItemSpec(
        model="flux2",
        prompt="a red fox jumps over a river " * 3,
        neg="",
        width=1024,
        height=1024,
        requested_width=1024,
        requested_height=1024,
        seed=42,
        num_inference_steps=25,
        guidance_scale=4.0,
        adapters=(AdapterRef(path=f"{adapter}.safetensors", sha256=f"{adapter:064x}", size_bytes=1, multiplier=1.0),),
        output_format="png",
    )


def _claim(ledger: Ledger, slot: int, *, warm: str) -> Claim:
    claim = ledger.claim_next(_POOLS, slot=_slot_name(slot), boot=_BOOT, warm=warm)
    assert claim is not None
    return claim


def _beat(ledger: Ledger, slot: int, claim: Claim) -> None:
    report = {
        "model": "flux2",
        "state": "busy",
        "device": "cuda:0",
        "revision": "r",
        "precision": "bf16",
        "engines": "exact",
        "features": ",".join(_FEATURES),
        "memory_bytes": str(_GIB * 2**30),
        "warm": claim.spec.adapter_key,
        "item": claim.item_id,
        "base_drift": "0",
    }
    ledger.workers.beat(_slot_name(slot), report)


def _slot_name(slot: int) -> str:
    return f"host-{slot}/cuda:0"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
