"""Measure a batch of items as a worker renders them, with the GPU's idle share.

As in a worker, an image is encoded while the next one renders, and the next item is prepared while the current one
renders. Two adapters alternate and each item has its own prompt. That is the worst case: the queue prefers items that
need no swap.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.gpu.session import Session
from shared.job import AdapterRef, Progress
from worker.consumer import image_file
from worker.consumer.background import STEP_TO_PREPARE, BackgroundUploader, Prefetcher


def measure_batch(session: Session, folder: Path) -> None:
    """Render `plan.items` images and report the seconds of each, and the share of them in which the GPU was idle.

    Args:
        folder: where the two adapters are written.
    """
    adapters = [session.adapter(folder, name) for name in "AB"]
    warm_up = BackgroundUploader()
    for adapter in adapters:
        _render(session, adapter, 0, warm_up)
    warm_up.wait()
    step_ms, plan, renderer = session.step_ms(), session.plan, session.renderer
    uploader, prefetcher = BackgroundUploader(), Prefetcher()
    session.clock.reset_peak()
    with session.clock.busy(session.components.transformer, session.components.autoencoder.decoder) as busy_s:
        began = time.perf_counter()
        for number in range(plan.items):
            following = adapters[(number + 1) % 2]
            prepare = partial(renderer.prepare, session.item(following, number + 1), [following[1]])
            _render(session, adapters[number % 2], number, uploader, prepare=partial(prefetcher.submit, prepare))
        uploader.wait()
        wall_s = time.perf_counter() - began
        idle = 1 - busy_s() / wall_s
    prefetcher.wait()
    renderer.swapper.activate(())
    session.report.add(
        f"batch of {plan.items}, two adapters in turn, per item",
        engine=session.engine_name,
        size=plan.sizes[0],
        seconds=wall_s / plan.items,
        ratio=wall_s / plan.items / (plan.steps * step_ms / 1000),
        against=f"{plan.steps} steps",
        peak_gb=session.clock.peak_gb(),
        steps=plan.steps,
        idle_share=idle,
        drift=max(renderer.swapper.count_corrupted(), renderer.swapper.corrupted),
    )


def _render(
    session: Session,
    adapter: tuple[AdapterRef, Path],
    seed: int,
    uploader: BackgroundUploader,
    *,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    spec = session.item(adapter, seed)

    def on_progress(progress: Progress) -> None:
        if (progress.stage, progress.step) == ("denoise", STEP_TO_PREPARE):
            prepare()

    rendered = session.renderer.render(spec, [adapter[1]], on_progress=on_progress)

    parameters = image_file.image_parameters(spec, rendered.pipeline, adapters=rendered.adapters, index=0)

    def encode() -> None:
        image_file.encode(rendered.image, spec.output_format, parameters)

    uploader.submit(encode)
