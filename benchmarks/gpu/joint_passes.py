"""Measure several images in one pass: whether it saves time, and whether it changes the latents of each image."""

from __future__ import annotations

import statistics

import torch

from benchmarks.gpu.session import SEEDS, Session


def measure_joint_passes(session: Session) -> None:
    """Compare steps of two and of four images in one pass with steps of one image, at every size."""
    for size in session.plan.sizes:
        steps = session.plan.repeat + 1
        alone = [session.denoise(session.exact, size, steps, seeds=(seed,)) for seed in SEEDS]
        one_ms = statistics.median(time for _, times in alone for time in times)
        for count in (2, len(SEEDS)):
            session.denoise(session.exact, size, 1, seeds=SEEDS[:count])  # compiles for this batch size, if needed
            latents, times = session.denoise(session.exact, size, steps, seeds=SEEDS[:count])
            single = torch.cat([kept for kept, _ in alone[:count]])
            session.report.add(
                f"together: {count} images a pass, per image",
                engine=session.engine_name,
                size=size,
                median_ms=statistics.median(times) / count,
                ratio=statistics.median(times) / count / one_ms,
                against="alone",
                differing=int((latents != single).sum()),
                of=latents.numel(),
                after_steps=steps,
            )
