"""Measure adapter swaps: between two adapters, to and from the base model, and hidden under one or two steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.gpu.report import Row
from benchmarks.gpu.session import Session
from shared.job import AdapterRef

_UNDER_A_STEP = "switch under a step"
_UNDER_TWO_STEPS = "switch under two steps"


def measure_swaps(session: Session, folder: Path) -> None:
    """Measure each kind of swap `plan.repeat` times on the caller's clock.

    Each adapter file is read only at its first swap: the renderer's cache keeps it.

    Args:
        folder: where the two adapters are written.
    """
    swapper, step_ms, size = session.renderer.swapper, session.step_ms(), session.plan.sizes[0]
    start, passes = session.starting_noise(size), 1 if session.components.is_distilled else 2
    a, b = (session.adapter(folder, name) for name in "AB")
    times: dict[str, list[float]] = {}
    corrupted = 0

    def step() -> None:
        session.denoise(session.exact, size, 1, start=start)

    def use(*adapters: tuple[AdapterRef, Path]) -> None:
        swapper.activate(adapters)

    def use_under_a_step(adapter: tuple[AdapterRef, Path]) -> None:
        swapper.activate([adapter], wait=False)
        step()
        swapper.wait()

    def use_under_two(adapter: tuple[AdapterRef, Path]) -> None:
        swapper.begin_next([adapter], passes=passes)
        step()
        swapper.abandon_passes()
        use_under_a_step(adapter)

    def measure(what: str, change: Callable[[], None]) -> None:
        nonlocal corrupted
        times.setdefault(what, []).append(session.clock.seconds(change))
        corrupted = max(corrupted, swapper.count_corrupted(), swapper.corrupted)

    alone_ms = 1000 * session.clock.median_s(step, session.plan.repeat)
    measure("switch base to A, the first", partial(use, a))
    for _ in range(session.plan.repeat):
        measure("switch A to B", partial(use, b))
        measure("switch B to A", partial(use, a))
        measure("switch A to base", use)
        measure("switch base to A", partial(use, a))
        for what, change in ((_UNDER_A_STEP, use_under_a_step), (_UNDER_TWO_STEPS, use_under_two)):
            measure(what, partial(change, b))
            measure(what, partial(change, a))
    use()
    _add_rows(session, times, step_ms=step_ms, alone_ms=alone_ms, corrupted=corrupted)


def _add_rows(
    session: Session, times: Mapping[str, list[float]], *, step_ms: float, alone_ms: float, corrupted: int
) -> None:
    """Add a row for each kind of swap, with the median of its times in seconds."""
    clean = session.components.placement.base_weights
    for what, seconds in times.items():
        median_ms = statistics.median(seconds) * 1000
        steps = {_UNDER_A_STEP: 1, _UNDER_TWO_STEPS: 2}.get(what)
        # The steps themselves would have taken this long without a swap.
        added: Row = {"added_ms": median_ms - steps * alone_ms} if steps else {}
        session.add_row(what, median_ms, step_ms=step_ms, **added, n=len(seconds), clean=clean, drift=corrupted)
