"""Measure the device's ceilings: the rate of matrix products, and of copies from host memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.report import Report
from worker.checkpoint.pinned import pinned_like

#: Names of the rows that hold the rate of matrix products in `tflops`.
BF16, FP8 = "bf16 matmul", "fp8 row-wise matmul"

_BATCH = 10
# Hopper, compute capability 9.0, is the first with products that scale each row and each column separately.
_ROW_WISE = (9, 0)


def measure_ceilings(report: Report, clock: Clock, *, small: bool) -> None:
    """Measure bfloat16 and float8 products of 8192x8192, sustained for 2 s, and a copy of 1 GB of pinned memory.

    Args:
        small: use 256x256, 0.05 s and 4 MB instead.
    """
    size, seconds = (256, 0.05) if small else (8192, 2.0)
    a, b = (torch.randn(size, size, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    bf16 = _sustained_ms(clock, lambda: a @ b, seconds)
    report.add(BF16, size=size, median_ms=bf16, tflops=_tflops(size, bf16))
    if clock.device.type == "cuda" and torch.cuda.get_device_capability(clock.device) >= _ROW_WISE:
        a8, b8 = (
            a.to(torch.float8_e4m3fn),
            b.to(torch.float8_e4m3fn).t(),
        )  # _scaled_mm requires the second operand column by column
        ones = torch.ones(size, 1, device=clock.device)

        def product() -> object:
            return torch._scaled_mm(
                a8, b8, scale_a=ones, scale_b=ones.t(), out_dtype=torch.bfloat16, use_fast_accum=True
            )

        fp8 = _sustained_ms(clock, product, seconds)
        ratio = {"ratio": fp8 / bf16, "against": BF16}
        report.add(FP8, size=size, median_ms=fp8, **ratio, tflops=_tflops(size, fp8))
    target = torch.empty(4_000_000 if small else 1_000_000_000, dtype=torch.uint8, device=clock.device)
    pinned = pinned_like(target)
    copy_ms = _sustained_ms(clock, lambda: target.copy_(pinned, non_blocking=True), seconds)
    report.add("host to device copy", size=len(target), median_ms=copy_ms, gb_per_s=len(target) / copy_ms / 1e6)


def _sustained_ms(clock: Clock, call: Callable[[], object], seconds: float) -> float:
    """Return the median milliseconds of a call in the second half of `seconds`, when the clock rate has settled."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 2:
        start = clock.mark()
        for _ in range(_BATCH):
            call()
        times += clock.between([start, clock.mark()])
    return statistics.median(times[len(times) // 2 :]) / _BATCH


def _tflops(size: int, median_ms: float) -> float:
    return 2 * size**3 / median_ms / 1e9
