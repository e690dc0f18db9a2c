"""Measure how many items one Redis hands out and takes back, for workers in two processes of one machine."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import count, cycle
from multiprocessing.synchronize import Barrier

from benchmarks.rendered_result import describe_result
from shared.ledger import Ledger
from shared.ledger.connection import connect
from shared.settings import QueueSettings

_PROCESSES, _START_S = 2, 60.0
_TIMINGS = {"encode_prompt": 0.1, "adapter": 0.3, "denoise": 11.0, "decode": 0.2, "encode_image": 0.2, "upload": 0.1}


@contextmanager
def worker_processes() -> Iterator[ProcessPoolExecutor]:
    """Start the processes; inside the block all of them are ready."""
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(_PROCESSES + 1)
    with ProcessPoolExecutor(_PROCESSES, context, initializer=_report_start, initargs=[started]) as processes:
        # Each call starts a process while none is idle.
        for _ in range(_PROCESSES):
            processes.submit(time.perf_counter)
        started.wait(_START_S)
        yield processes


def _report_start(started: Barrier) -> None:
    started.wait(_START_S)


def measure_rate(
    processes: ProcessPoolExecutor, url: str, slots: Sequence[str], pools: Sequence[str], *, now_ms: int, seconds: float
) -> float:
    """Return the claims and commits a second, both counted, of slots that do nothing else.

    The clients' own work, which is larger than that of Redis, runs on the same machine.

    Args:
        processes: each has its part of the slots.
        now_ms: the ledger's time at the start.
    """
    parts = [slots[number::_PROCESSES] or slots for number in range(_PROCESSES)]
    running = [
        processes.submit(_run_slots, url, part, pools, f"process-{number}", now_ms=now_ms, seconds=seconds)
        for number, part in enumerate(parts)
    ]
    return sum(rate.result() for rate in running)


def _run_slots(
    url: str, slots: Sequence[str], pools: Sequence[str], boot: str, *, now_ms: int, seconds: float
) -> float:
    """Claim and commit items for slots in turn; return the calls a second."""
    calls, done = count(), 0
    settings = QueueSettings(lease_ttl_s=3600)
    ledger = Ledger(connect(url, timeout_s=30), settings, clock_ms=lambda: now_ms + next(calls) // 10)
    warm = dict.fromkeys(slots, "base")
    began = time.perf_counter()
    for slot in cycle(slots):
        claim = ledger.claim_next(pools, slot=slot, boot=boot, warm=warm[slot])
        if claim is None:
            raise ValueError("the queue is empty; measure for a shorter time, or queue more items")
        ledger.commit(claim, describe_result(claim, timings=_TIMINGS, change="none"), gpu_s=11.5)
        warm[slot] = claim.spec.adapter_key
        done += 2
        if (took_s := time.perf_counter() - began) > seconds:
            break
    return done / took_s
